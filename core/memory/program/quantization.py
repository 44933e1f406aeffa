"""Storage of a linear layer in 4 or 8 bits by bitsandbytes. Never simulates the arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from core.memory.components import Component

BLOCK_NUMEL = 64
"""Elements that share one scale in 4 bits (bitsandbytes.functional.quantize_4bit)."""
SCALES_PER_BLOCK = 256
"""Scales that share one scale of their own under double quantization."""


@dataclass(frozen=True)
class Quantization:
    """Storage of the frozen linear layers. Everything else stays as loaded."""

    bits: Literal[4, 8]
    double_quant: bool = False
    """True if the scales are quantized too (4 bits only)."""
    saves_inputs: bool = False
    """True if a 4-bit matmul saves its input, as bitsandbytes did before July 2024 (PR 1270)."""

    @property
    def keeps_inputs(self) -> bool:
        """True if a layer keeps its input for the backward pass where checkpointing cannot free it.

        MatMul8bitLt stores the input on the autograd context itself, not with save_for_backward,
        whose tensors checkpointing drops. MatMul4Bit keeps nothing
        (bitsandbytes/autograd/_functions.py, 0.50).
        """
        return self.bits == 8

    def storage(self, num_out: int, num_in: int) -> Iterator[tuple[int, Component]]:
        """Yield (bytes, component) of each tensor that stores a weight [out, in].

        4 bits: half a byte per element and a float32 scale per 64, 4.5 bits in all. With double
        quantization a scale is one byte, plus a float32 per 256 scales: 4.127 bits. 8 bits: one
        byte per element and a float32 scale per row.
        """
        numel = num_out * num_in
        if self.bits == 8:
            yield numel, "weights"
            yield num_out * 4, "quantization_state"
            return
        num_scales = -(-numel // BLOCK_NUMEL)
        yield numel // 2, "weights"
        yield num_scales if self.double_quant else num_scales * 4, "quantization_state"
        yield 16 * 4, "quantization_state"  # code book of the 16 values
        if self.double_quant:
            yield -(-num_scales // SCALES_PER_BLOCK) * 4, "quantization_state"
            yield 256 * 4, "quantization_state"  # code book of the scales
            yield 4, "quantization_state"  # mean of the scales

    def dequantized_bytes(self, num_out: int, num_in: int) -> int:
        """Return the size of a weight's 16-bit copy, which large matmuls make in both directions.

        Source: _dequant_linear_fallback (4 bits, forward), MatMul4Bit and MatMul8bitLt.backward.
        """
        return num_out * num_in * 2

    def forward_temporary_bytes(
        self, num_tokens: int, num_out: int, num_in: int, is_float16: bool
    ) -> int:
        """Return the bytes that the forward matmul needs in addition to its output.

        4 bits: the 16-bit copy of the weight. 8 bits: first the input in float16, its absolute
        values, a byte each that marks outliers, and the input in int8; then the int8 input and the
        product in int32 and in float16. Sources: int8_vectorwise_quant in
        bitsandbytes/backends/cuda/ops.py, int8_scaled_mm in backends/default/ops.py.
        """
        if self.bits == 4:
            return self.dequantized_bytes(num_out, num_in)
        copy_itemsize = 0 if is_float16 else 2
        # The output does not exist yet while the input is quantized, so its 16 bits are deducted.
        quantizing = (copy_itemsize + 4) * num_in - 2 * num_out
        multiplying = num_in + (4 + copy_itemsize) * num_out
        return num_tokens * max(quantizing, multiplying)
