"""Temporary bytes of CUDA kernels, beside their results, where the CPU's need none.

Knows nothing of models.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from core.memory.step import MAX_UNSORTED_TOKENS

from .allocation_log import TemporaryBytes


def softmax_backward(grad: Tensor, output: Tensor, *_: Any, **__: Any) -> int:
    """Return the bytes of `tmp = grad * output`.

    Source: softmax_backward_cuda_out in aten/src/ATen/native/cuda/SoftMax.cu.
    """
    return output.numel() * grad.element_size()


def embedding_backward(grad: Tensor, indices: Tensor, *_: Any, **__: Any) -> int:
    """Return the bytes for sorting the gradient's rows by word and summing them, above 3072 tokens.

    Six lists of 8-byte numbers, and [tokens, width] in float32 (embedding_dense_backward_cuda in
    aten/src/ATen/native/cuda/Embedding.cu, embedding_backward_cuda_kernel in
    EmbeddingBackwardKernel.cu).
    """
    if indices.numel() <= MAX_UNSORTED_TOKENS:
        return 0
    return 6 * 8 * indices.numel() + 4 * grad.numel()


def gemm_4bit(
    x: Tensor,
    weight: Tensor,
    shape: Any,
    absmax: Tensor,
    *_: Any,
    absmax_8bit: Tensor | None = None,
    **__: Any,
) -> int:
    """Return the bytes of the unpacked weight, and of two float32 copies of doubly quantized
    scales.

    bitsandbytes unpacks above 1536 tokens; below, its fused kernel may need none (gemm_4bit and
    _dequant_linear_fallback in bitsandbytes/backends/cuda/ops.py). The trace always counts it.
    """
    scales_bytes = 2 * 4 * absmax_8bit.numel() if absmax_8bit is not None else 0
    return shape[0] * shape[1] * x.element_size() + scales_bytes


def int8_vectorwise_quant(x: Tensor, *_: Any, **__: Any) -> int:
    """Return the bytes of the search for outliers: float16 absolute values, and one byte for each.

    Source: int8_vectorwise_quant in bitsandbytes/backends/cuda/ops.py, with the threshold that
    transformers sets.
    """
    return 3 * x.numel()


def int8_scaled_mm(x: Tensor, weight: Tensor, *_: Any, dtype: Any = None, **__: Any) -> int:
    """Return the bytes of the product in int32, and in float16 unless that is the result.

    Source: int8_scaled_mm in bitsandbytes/backends/default/ops.py, int8_mm_dequant in its
    cuda/ops.py.
    """
    numel = x.numel() // x.shape[-1] * weight.shape[0]
    return numel * (4 if str(dtype) == "torch.float16" else 6)


TEMPORARY_BYTES: Mapping[str, TemporaryBytes] = {
    "aten::_softmax_backward_data": softmax_backward,
    "aten::embedding_dense_backward": embedding_backward,
    "bitsandbytes::gemm_4bit": gemm_4bit,
    "bitsandbytes::int8_vectorwise_quant": int8_vectorwise_quant,
    "bitsandbytes::int8_scaled_mm": int8_scaled_mm,
}
"""Operation -> temporary bytes of its CUDA kernel."""
