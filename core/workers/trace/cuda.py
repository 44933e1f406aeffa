"""Emulate a CUDA device on the CPU, where the trace runs: which kernels run, what they save.

Sources are those of torch 2.13.
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

from .allocation_log import AllocationLog
from .autograd_functions import (
    Dropout,
    EfficientAttention,
    FlashAttention,
    HalfSoftmax,
    LogProbabilities,
    MaskedScatter,
    MaskedSelection,
)

MIB = 2**20
TRACED_FLASH = "traced_fa2"
"""Name in place of flash_attention_2: transformers requires the package for names with "flash"."""
TRACED_FLEX = "traced_blocks"
"""Name in place of flex_attention. It saves what FlashAttention saves, and needs no mask copies."""
# fmt: off
AUTOCAST_TO_FLOAT32 = frozenset({
    torch.Tensor.pow, torch.Tensor.__pow__, torch.pow, torch.Tensor.rsqrt, torch.rsqrt,
    torch.Tensor.exp, torch.exp, torch.Tensor.log, torch.log, torch.Tensor.reciprocal,
    torch.reciprocal, F.softplus, F.layer_norm, F.rms_norm, F.group_norm, torch.logsumexp,
    torch.Tensor.logsumexp,
})
"""AT_FORALL_FP32 in ATen/autocast_mode.h, as far as decoders use it: autocast casts their input to
float32, but on CUDA only."""
AUTOCAST_RESULT_TO_FLOAT32 = frozenset({
    torch.Tensor.sum, torch.sum, torch.Tensor.prod, torch.prod, torch.Tensor.cumsum, torch.cumsum,
    torch.Tensor.cumprod, torch.cumprod, F.softmax, torch.softmax, torch.Tensor.softmax,
    F.log_softmax,
})
"""AT_FORALL_FP32_SET_OPT_DTYPE: autocast makes their result float32 unless the call sets a dtype.
"""
# fmt: on


@dataclass(frozen=True)
class Card:
    """Facts of a GPU that decide which kernels run."""

    compute_capability: tuple[int, int]
    """(0, 0) for no GPU."""
    supports_bf16: bool

    @property
    def is_cpu(self) -> bool:
        """True if the training runs without a GPU."""
        return self.compute_capability == (0, 0)

    @property
    def workspace_bytes(self) -> int:
        """Workspace that cuBLAS allocates for each thread that multiplies.

        Source: getChosenWorkspaceSize in CublasHandlePool.cpp.
        """
        if self.is_cpu:
            return 0
        if self.compute_capability >= (9, 0):
            return 32 * MIB
        return 8 * MIB + MIB // 8


class CudaFunctions(TorchFunctionMode):
    """Functions that do what they do on a card, while this mode is entered."""

    def __init__(self, card: Card, log: AllocationLog, share_selected: Fraction):
        """`share_selected`: share of the tokens that a mask of the loss selects."""
        super().__init__()
        self.card = card
        self.log = log
        self.share_selected = share_selected
        self._replacements: Mapping[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._attention,
            F.dropout: _dropout,
            F.softmax: self._softmax,
            torch.Tensor.__getitem__: self._get_item,
            torch.Tensor.masked_scatter: _masked_scatter,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch or its replacement. torch calls this for every one."""
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = _autocast_arguments(func, args, kwargs)
        return self._replacements.get(func, func)(*args, **kwargs)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        *_: Any,
        **options: Any,
    ) -> Tensor:
        """FlashAttention without a mask, where the card has it, else the memory-efficient kernel.

        Source: priority_order and use_flash_attention in
        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp. The latter kernel takes the mask in
        the precision of the queries, and a key and a value for every query head.
        """
        q, k, v = (_cast_to_autocast(tensor) for tensor in (q, k, v))
        has_flash = self.card.compute_capability >= (8, 0) and q.shape[-1] == v.shape[-1] <= 256
        if has_flash and attn_mask is None and q.dtype != torch.float32:
            return FlashAttention.apply(self.log, q, k, v)
        if k.shape[1] != q.shape[1]:
            k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=q.dtype)
        return EfficientAttention.apply(self.log, q, k, v, attn_mask)

    def flash_attention_2(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attention of `attn_implementation="flash_attention_2"`.

        Padded rows are copied without the padding, and back. Source: _flash_attention_forward in
        transformers/modeling_flash_attention_utils.py.
        """
        is_padded = attention_mask is not None and query.shape[0] > 1
        q, k, v = (_cast_to_autocast(tensor) for tensor in (query, key, value))
        if is_padded:
            q, k, v = q.clone(), k.clone(), v.clone()
        out = FlashAttention.apply(self.log, q, k, v).transpose(1, 2)
        return out.clone() if is_padded else out, None

    def _get_item(self, x: Tensor, index: Any) -> Tensor:
        """`x[index]`."""
        if isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 0:
            return MaskedSelection.apply(x, index, int(index.numel() * self.share_selected))
        return x[index]

    def _softmax(
        self,
        x: Tensor,
        dim: int | None = None,
        *_: Any,
        dtype: torch.dtype | None = None,
        **__: Any,
    ) -> Tensor:
        """`softmax(x, dtype=float32)` reads float16 directly; bfloat16 is copied first, as on a
        CPU.

        Source: softmax in aten/src/ATen/native/SoftMax.cpp.
        """
        if x.dtype == torch.float16 and dtype == torch.float32:
            return HalfSoftmax.apply(self.log, x)
        return F.softmax(x, dim, dtype=dtype)


@contextmanager
def emulate_cuda(
    card: Card, log: AllocationLog, share_selected: Fraction = Fraction(1)
) -> Iterator[None]:
    """Make functions of torch, TRL's head and PEFT's question for autocast behave as on this card.

    `share_selected` of the tokens count for the loss.
    """
    with patch.object(torch, "is_autocast_enabled", _is_autocast_enabled):
        if card.is_cpu:
            yield
            return
        functions = CudaFunctions(card, log, share_selected)
        for name in (TRACED_FLASH, TRACED_FLEX):
            AttentionInterface.register(name, functions.flash_attention_2)
        with functions, _fused_head(), _fused_log_softmax(), _int8_products():
            yield


@contextmanager
def _fused_head() -> Iterator[None]:
    """TRL's output head with Triton.

    Only tokens that count are scored, tile by tile in place. Its kernels have no temporaries, and
    `addmm` adds 16-bit products to a float32 sum (trl/kernels/chunked_logprob.py).
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
        log_probs, entropy = LogProbabilities.apply(logits, index)
        return log_probs, entropy

    with (
        patch.object(trl_head, "is_triton_available", lambda: True),
        patch.object(trl_head, "_supports_trl_loss_kernel", lambda *_: True),
        patch.object(trl_head, "_fused_logprob_entropy", fused, create=True),
    ):
        yield


@contextmanager
def _int8_products() -> Iterator[None]:
    """Integer products of 8-bit layers; a CPU uses floating point (matmul in
    bitsandbytes/autograd)."""
    with patch.object(bnb_functions, "MatMul8bitFp", bnb_functions.MatMul8bitLt):
        yield


def _no_mask(*_: Any, **__: Any) -> None:
    """FlexAttention gets a function and a list of blocks, which is small beside any tensor."""


def _padding_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """FlashAttention needs to know which tokens are padding, not which tokens attend to which."""
    return attention_mask


_torch_is_autocast_enabled = torch.is_autocast_enabled


def _is_autocast_enabled(device_type: str = "cpu") -> bool:
    """Without an argument torch asks for CUDA; the trace uses the autocast of the CPU."""
    return _torch_is_autocast_enabled(device_type)


def _cast_to_autocast(x: Tensor) -> Tensor:
    """Return an input as autocast passes it to a matrix product."""
    if torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def _autocast_arguments(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments as CUDA's autocast passes them on."""
    if not args or not isinstance(args[0], Tensor):
        return args, kwargs
    if args[0].dtype not in (torch.bfloat16, torch.float16):
        return args, kwargs
    if func in AUTOCAST_TO_FLOAT32:
        return (args[0].float(), *args[1:]), kwargs
    if func in AUTOCAST_RESULT_TO_FLOAT32 and kwargs.get("dtype") is None:
        return args, {**kwargs, "dtype": torch.float32}
    return args, kwargs


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and p > 0:
        return Dropout.apply(x)
    return x


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    if not source.is_floating_point():
        return torch.empty_like(x)
    return MaskedScatter.apply(x, mask, source)


# Models are built before the log exists, so the names are registered first without one.
for _name, _mask in ((TRACED_FLASH, _padding_mask), (TRACED_FLEX, _no_mask)):
    AttentionInterface.register(_name, CudaFunctions.flash_attention_2)
    AttentionMaskInterface.register(_name, _mask)
