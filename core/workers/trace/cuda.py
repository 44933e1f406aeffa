"""Functions that behave otherwise on a CUDA device than on the CPU, where the trace runs: what they keep and allocate.

Sources are those of torch 2.13. Shapes: B rows, T tokens, H heads, D per head.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import bitsandbytes.autograd._functions as bnb_functions
import torch
import trl.kernels.chunked_logprob as chunked_logprob
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from trl.trainer import utils as trl_head

from .allocation_log import Ledger

MIB = 2**20
TRACED_FLASH = "traced_fa2"
"""Stands for flash_attention_2, whose package transformers would look for at a name with "flash" in it."""
TRACED_FLEX = "traced_blocks"
"""Stands for flex_attention, which keeps what FlashAttention keeps, and is told of padding without copies."""
AUTOCAST_TO_FLOAT32 = frozenset(
    {
        *(
            torch.Tensor.pow,
            torch.Tensor.__pow__,
            torch.pow,
            torch.Tensor.rsqrt,
            torch.rsqrt,
            torch.Tensor.exp,
        ),
        *(
            torch.exp,
            torch.Tensor.log,
            torch.log,
            torch.Tensor.reciprocal,
            torch.reciprocal,
            F.softplus,
        ),
        *(F.layer_norm, F.rms_norm, F.group_norm, torch.logsumexp, torch.Tensor.logsumexp),
    }
)
"""AT_FORALL_FP32 in ATen/autocast_mode.h, as far as decoders use it: autocast widens their input, but on CUDA only."""
AUTOCAST_RESULT_TO_FLOAT32 = frozenset(
    {
        *(
            torch.Tensor.sum,
            torch.sum,
            torch.Tensor.prod,
            torch.prod,
            torch.Tensor.cumsum,
            torch.cumsum,
        ),
        *(
            torch.Tensor.cumprod,
            torch.cumprod,
            F.softmax,
            torch.softmax,
            torch.Tensor.softmax,
            F.log_softmax,
        ),
    }
)
"""AT_FORALL_FP32_SET_OPT_DTYPE: autocast makes their result float32 unless the call names a precision."""


@dataclass(frozen=True)
class Card:
    """The facts of a GPU that decide on kernels. Compute capability (0, 0) stands for no GPU."""

    compute_capability: tuple[int, int]
    supports_bf16: bool

    @property
    def is_cpu(self) -> bool:
        """True if the training runs without a GPU."""
        return self.compute_capability == (0, 0)

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS takes for each thread that multiplies: getChosenWorkspaceSize in CublasHandlePool.cpp."""
        if self.is_cpu:
            return 0
        return 32 * MIB if self.compute_capability >= (9, 0) else 8 * MIB + MIB // 8


class CudaFunctions(TorchFunctionMode):
    """While entered, the functions in the table do what they do on a card."""

    def __init__(self, card: Card, ledger: Ledger, share_chosen: Fraction):
        super().__init__()
        self.card = card
        self.share_chosen = share_chosen
        self.ledger = ledger
        self._instead: Mapping[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._attention,
            F.dropout: _dropout,
            F.softmax: self._softmax,
            torch.Tensor.__getitem__: self._item,
            torch.Tensor.masked_scatter: _masked_scatter,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = _widened(func, args, kwargs)
        return self._instead.get(func, func)(*args, **kwargs)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        *_: Any,
        **options: Any,
    ) -> Tensor:
        """FlashAttention where there is no mask and the card has it, else the memory-efficient kernel.

        Source: priority_order and use_flash_attention in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp. The
        latter takes the mask in the precision of the queries, and a key and a value for every query head.
        """
        q, k, v = (_autocast(tensor) for tensor in (q, k, v))
        has_flash = self.card.compute_capability >= (8, 0) and q.shape[-1] == v.shape[-1] <= 256
        if has_flash and attn_mask is None and q.dtype != torch.float32:
            return _Flash.apply(self.ledger, q, k, v)
        if k.shape[1] != q.shape[1]:
            k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        if attn_mask is not None:
            attn_mask = (
                torch.empty_like(attn_mask, dtype=q.dtype)
                if attn_mask.dtype == torch.bool
                else attn_mask
            )
        return _Efficient.apply(self.ledger, q, k, v, attn_mask)

    def flash(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """`attn_implementation="flash_attention_2"`: rows that are padded are copied without the padding, and back.

        Source: _flash_attention_forward in transformers/modeling_flash_attention_utils.py.
        """
        is_padded = attention_mask is not None and query.shape[0] > 1
        q, k, v = (_autocast(tensor) for tensor in (query, key, value))
        q, k, v = (tensor.clone() if is_padded else tensor for tensor in (q, k, v))
        out = _Flash.apply(self.ledger, q, k, v).transpose(1, 2)
        return out.clone() if is_padded else out, None

    def _item(self, x: Tensor, index: Any) -> Tensor:
        """`x[index]`."""
        if isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 0:
            return _Selection.apply(x, index, int(index.numel() * self.share_chosen))
        return x[index]

    def _softmax(
        self,
        x: Tensor,
        dim: int | None = None,
        *_: Any,
        dtype: torch.dtype | None = None,
        **__: Any,
    ) -> Tensor:
        """`softmax(x, dtype=float32)` reads float16 as it is; bfloat16 is copied first, as on the CPU.

        Source: softmax in aten/src/ATen/native/SoftMax.cpp.
        """
        if x.dtype == torch.float16 and dtype == torch.float32:
            return _HalfSoftmax.apply(self.ledger, x)
        return F.softmax(x, dim, dtype=dtype)


@contextmanager
def as_on(card: Card, ledger: Ledger, share_chosen: Fraction = Fraction(1)) -> Iterator[None]:
    """Functions, TRL's head and PEFT's question for autocast answer as on this card.

    `share_chosen` of the tokens count for the loss.
    """
    with patch.object(torch, "is_autocast_enabled", _is_autocast_enabled):
        if card.is_cpu:
            yield
        else:
            functions = CudaFunctions(card, ledger, share_chosen)
            for name in (TRACED_FLASH, TRACED_FLEX):
                AttentionInterface.register(name, functions.flash)
            with functions, _fused_head(), _fused_log_softmax(), _int8_products():
                yield


@contextmanager
def _fused_head() -> Iterator[None]:
    """TRL's head with Triton: only tokens that count are scored, and a tile is folded where it stands.

    Its kernels have no temporaries, and `addmm` adds 16-bit products to a float32 sum (trl/kernels/chunked_logprob.py).
    """
    with (
        patch.object(trl_head, "_use_triton", lambda device: True),
        patch.object(chunked_logprob, "_forward_tile", lambda *_, **__: None),
        patch.object(chunked_logprob, "_backward_tile", lambda *_, **__: None),
        patch.object(chunked_logprob, "_addmm_fp32", lambda *_: None),
    ):
        yield


@contextmanager
def _fused_log_softmax() -> Iterator[None]:
    """TRL's log-probabilities from logits, with Triton."""

    def fused(logits: Tensor, index: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        log_probs, entropy = _LogProbabilities.apply(logits, index)
        return log_probs, entropy

    with (
        patch.object(trl_head, "is_triton_available", lambda: True),
        patch.object(trl_head, "_supports_trl_loss_kernel", lambda *_: True),
        patch.object(trl_head, "_fused_logprob_entropy", fused, create=True),
    ):
        yield


@contextmanager
def _int8_products() -> Iterator[None]:
    """8-bit layers multiply integers, which a CPU leaves to floating point (matmul in bitsandbytes/autograd)."""
    with patch.object(bnb_functions, "MatMul8bitFp", bnb_functions.MatMul8bitLt):
        yield


def _no_mask(*_: Any, **__: Any) -> None:
    """FlexAttention is given a function, and a list of blocks that is small beside any tensor."""


def _padding(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """FlashAttention wants to know which tokens are padding, not who may look at whom."""
    return attention_mask


_ask_torch = torch.is_autocast_enabled


def _is_autocast_enabled(device_type: str = "cpu") -> bool:
    """Without an argument torch asks for CUDA; the autocast of the trace is that of the CPU."""
    return _ask_torch(device_type)


def _autocast(x: Tensor) -> Tensor:
    """An input as autocast hands it to a matrix product."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def _widened(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments as CUDA's autocast passes them on."""
    if (
        not args
        or not isinstance(args[0], Tensor)
        or args[0].dtype not in (torch.bfloat16, torch.float16)
    ):
        return args, kwargs
    if func in AUTOCAST_TO_FLOAT32:
        return (args[0].float(), *args[1:]), kwargs
    if func in AUTOCAST_RESULT_TO_FLOAT32 and kwargs.get("dtype") is None:
        return args, {**kwargs, "dtype": torch.float32}
    return args, kwargs


class _Flash(torch.autograd.Function):
    """FlashAttention-2 for q [B, H, T, D]: keeps q, k, v, the output and one float32 per query.

    Backward: the gradient of q in float32 (T rounded up to 128, D to 32, above 128 to 64) and one float32 per query;
    with grouped heads the gradients of k and v for every query head (mha_bwd in flash_attn/flash_api.cpp).
    """

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _like_rows(q)
        ctx.ledger = ledger
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = ctx.saved_tensors
        gradients = [_like_rows(tensor) for tensor in (q, k, v)]
        rows, heads, tokens, width = q.shape
        padded = rows * heads * _round_up(tokens, 128)
        num_bytes = 4 * padded * (_round_up(width, 32 if width <= 128 else 64) + 1)
        if k.shape[1] != heads:
            num_bytes += 2 * q.numel() * q.element_size()
        with ctx.ledger.scratch(num_bytes, "flash attention, backward"):
            return None, *gradients


class _Efficient(torch.autograd.Function):
    """The memory-efficient kernel for q, k, v [B, H, T, D]: keeps them, the mask, the output and a float32 per query.

    Backward: one float32 per query and, from Volta on, the gradient of q in float32, T and D rounded up to 64; above
    128 per head those of k and v too (_efficient_attention_backward in attention_backward.cu, workspace_size and
    kNeedsAccumGradQ in mem_eff_attention/kernel_backward.h).
    """

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, *inputs: Tensor | None) -> Tensor:
        q, _, v, *_ = (tensor for tensor in inputs if tensor is not None)
        rows, heads, tokens, _ = q.shape
        out = _like_rows(q, v.shape[-1])
        ctx.ledger = ledger
        ctx.save_for_backward(
            *inputs, out, torch.empty(rows, heads, _round_up(tokens, 32), dtype=torch.float32)
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = ctx.saved_tensors
        gradients = [_like_rows(tensor) for tensor in (q, k, v)]
        rows, heads, tokens, width = q.shape
        num_copies = 1 if width <= 128 else 3
        num_bytes = (
            4 * rows * heads * (tokens + num_copies * _round_up(tokens, 64) * _round_up(width, 64))
        )
        with ctx.ledger.scratch(num_bytes, "memory-efficient attention, backward"):
            return None, *gradients, None


class _LogProbabilities(torch.autograd.Function):
    """Log-probability and entropy for logits [B, T, V]: keeps the logits and two float32 per token; the gradient is a
    tensor as large as they (trl/kernels/logprob_entropy.py).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, *others = (torch.empty(index.shape, dtype=torch.float32) for _ in range(4))
        ctx.save_for_backward(logits, index, *others[1:])
        return log_probs, others[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        logits, *_rest = ctx.saved_tensors
        return torch.empty(logits.shape, dtype=logits.dtype), None


class _HalfSoftmax(torch.autograd.Function):
    """softmax of float16 in float32, without a copy of its input; backward `tmp = grad * output` as ever."""

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, x: Tensor) -> Tensor:
        out = torch.empty_like(x, dtype=torch.float32)
        ctx.ledger, ctx.dtype = ledger, x.dtype
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (out,) = ctx.saved_tensors
        with ctx.ledger.scratch(out.numel() * 4, "softmax, backward"):
            return None, torch.empty_like(out, dtype=ctx.dtype)


class _Dropout(torch.autograd.Function):
    """Dropout: keeps one byte per number (native_dropout); the CPU keeps the noise in the precision of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ctx.save_for_backward(torch.empty_like(x, dtype=torch.bool))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (_mask,) = ctx.saved_tensors  # asking for it is what makes a checkpointed layer run again
        return torch.empty_like(grad)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _Dropout.apply(x) if training and p > 0 else x


class _Selection(torch.autograd.Function):
    """`x[mask]` with so many tokens chosen, for the values of a mask are not known here: a copy, kept by nobody.

    Backward: zeros of the size of x that the gradient is written into.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, num_chosen: int) -> Tensor:
        ctx.sizes = x.shape
        ctx.save_for_backward(mask)
        return x.new_empty(num_chosen, *x.shape[mask.dim() :])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad.new_empty(ctx.sizes), None, None


class _Scatter(torch.autograd.Function):
    """`zeros.masked_scatter(mask, source)`, again with every place chosen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        ctx.sizes = source.shape
        ctx.save_for_backward(mask)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, grad.new_empty(ctx.sizes)


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    return _Scatter.apply(x, mask, source) if source.is_floating_point() else torch.empty_like(x)


def _like_rows(x: Tensor, width: int | None = None) -> Tensor:
    """A new tensor [B, H, T, D] that lies as [B, T, H, D], as kernels of attention make them; D is `width` if given."""
    rows, heads, tokens, own_width = x.shape
    return x.new_empty(rows, tokens, heads, width or own_width).transpose(1, 2)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


for _name, _mask in ((TRACED_FLASH, _padding), (TRACED_FLEX, _no_mask)):
    AttentionInterface.register(
        _name, CudaFunctions.flash
    )  # a name to build a model with; `as_on` knows the ledger
    AttentionMaskInterface.register(_name, _mask)
