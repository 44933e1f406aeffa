"""Autograd functions that save and allocate what CUDA kernels do, where the CPU does otherwise.

They compute nothing. Sources are those of torch 2.13. Shapes: B rows, T tokens, H heads, D per
head, V words.
"""

from typing import Any

import torch
from torch import Tensor

from .allocation_log import AllocationLog


class FlashAttention(torch.autograd.Function):
    """FlashAttention-2 for q [B, H, T, D]: saves q, k, v, the output and one float32 per query.

    Backward: the gradient of q in float32 (T rounded up to 128, D to 32, above 128 to 64) and one
    float32 per query; with grouped heads the gradients of k and v for every query head (mha_bwd in
    flash_attn/flash_api.cpp).
    """

    @staticmethod
    def forward(ctx: Any, log: AllocationLog, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _attention_output(q)
        ctx.log = log
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = ctx.saved_tensors
        gradients = [_attention_output(tensor) for tensor in (q, k, v)]
        rows, heads, tokens, width = q.shape
        num_queries = rows * heads * _round_up(tokens, 128)
        width_multiple = 32 if width <= 128 else 64
        num_bytes = 4 * num_queries * (_round_up(width, width_multiple) + 1)
        if k.shape[1] != heads:
            num_bytes += 2 * q.numel() * q.element_size()
        with ctx.log.temporary(num_bytes, "flash attention, backward"):
            return None, *gradients


class EfficientAttention(torch.autograd.Function):
    """Memory-efficient attention for q, k, v [B, H, T, D]: saves them, the mask, the output and one
    float32 per query.

    Backward: one float32 per query and, from Volta on, the gradient of q in float32, T and D
    rounded up to 64; above 128 per head those of k and v too (_efficient_attention_backward in
    attention_backward.cu, workspace_size and kNeedsAccumGradQ in
    mem_eff_attention/kernel_backward.h).
    """

    @staticmethod
    def forward(ctx: Any, log: AllocationLog, *inputs: Tensor | None) -> Tensor:
        q, _, v, *_ = (tensor for tensor in inputs if tensor is not None)
        rows, heads, tokens, _ = q.shape
        out = _attention_output(q, v.shape[-1])
        log_sum = torch.empty(rows, heads, _round_up(tokens, 32), dtype=torch.float32)
        ctx.log = log
        ctx.save_for_backward(*inputs, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = ctx.saved_tensors
        gradients = [_attention_output(tensor) for tensor in (q, k, v)]
        rows, heads, tokens, width = q.shape
        num_float32_gradients = 1 if width <= 128 else 3
        per_head = tokens + num_float32_gradients * _round_up(tokens, 64) * _round_up(width, 64)
        num_bytes = 4 * rows * heads * per_head
        with ctx.log.temporary(num_bytes, "memory-efficient attention, backward"):
            return None, *gradients, None


class LogProbabilities(torch.autograd.Function):
    """Log-probability and entropy for logits [B, T, V]: saves the logits and two float32 per token.

    The gradient is as large as the logits (trl/kernels/logprob_entropy.py).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, entropy, maximum, log_sum = (
            torch.empty(index.shape, dtype=torch.float32) for _ in range(4)
        )
        ctx.save_for_backward(logits, index, maximum, log_sum)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        logits, *_rest = ctx.saved_tensors
        return torch.empty(logits.shape, dtype=logits.dtype), None


class HalfSoftmax(torch.autograd.Function):
    """Softmax of float16 in float32, without a copy of its input.

    Backward: the usual `tmp = grad * output`.
    """

    @staticmethod
    def forward(ctx: Any, log: AllocationLog, x: Tensor) -> Tensor:
        out = torch.empty_like(x, dtype=torch.float32)
        ctx.log = log
        ctx.dtype = x.dtype
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (out,) = ctx.saved_tensors
        with ctx.log.temporary(out.numel() * 4, "softmax, backward"):
            return None, torch.empty_like(out, dtype=ctx.dtype)


class Dropout(torch.autograd.Function):
    """Dropout: saves one byte per element (native_dropout).

    The CPU saves the noise in the precision of the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ctx.save_for_backward(torch.empty_like(x, dtype=torch.bool))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Reading a saved tensor makes a checkpointed layer run again.
        (_mask,) = ctx.saved_tensors
        return torch.empty_like(grad)


class MaskedSelection(torch.autograd.Function):
    """`x[mask]` with a given number of tokens selected, because a traced mask has no values.

    The result is a copy. Backward: zeros of the size of x that the gradient is written into.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, num_selected: int) -> Tensor:
        ctx.input_shape = x.shape
        ctx.save_for_backward(mask)
        return x.new_empty(num_selected, *x.shape[mask.dim() :])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad.new_empty(ctx.input_shape), None, None


class MaskedScatter(torch.autograd.Function):
    """`zeros.masked_scatter(mask, source)`, with every place selected."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        ctx.source_shape = source.shape
        ctx.save_for_backward(mask)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, grad.new_empty(ctx.source_shape)


def _attention_output(x: Tensor, width: int | None = None) -> Tensor:
    """Return a new tensor [B, H, T, D] stored as [B, T, H, D], as attention kernels make it.

    `width` replaces D.
    """
    rows, heads, tokens, own_width = x.shape
    return x.new_empty(rows, tokens, heads, width or own_width).transpose(1, 2)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
