"""How bitsandbytes stores a linear layer in 4 or 8 bits. Never simulates the arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from core.memory.simulator.device_memory import Kind

BLOCK_NUMBERS = 64
"""Numbers that share one scale in 4 bits (bitsandbytes.functional.quantize_4bit)."""
SCALES_PER_BLOCK = 256
"""Scales that share one scale of their own under double quantisation."""


@dataclass(frozen=True)
class Quantization:
    """Storage of the frozen linear layers; everything else stays as loaded."""

    bits: Literal[4, 8]
    double_quant: bool = False
    """Quantise the scales too; 4 bits only."""
    saves_inputs: bool = False
    """A 4-bit product saves its input for the backward pass, as bitsandbytes did before July 2024 (its PR 1270)."""

    @property
    def keeps_inputs(self) -> bool:
        """True if a layer keeps its input for the backward pass, outside the reach of gradient checkpointing.

        MatMul8bitLt stores it on the autograd context itself rather than through save_for_backward, where
        checkpointing would see it; MatMul4Bit keeps nothing (bitsandbytes/autograd/_functions.py, 0.50).
        """
        return self.bits == 8

    def storage(self, num_out: int, num_in: int) -> Iterator[tuple[int, Kind]]:
        """(bytes, kind) of each tensor that stores a weight [out, in].

        4 bits: half a byte per number and a float32 scale per 64: 4.5 bits. With double quantisation the scale is one
        byte, plus a float32 per 256 scales: 4.127 bits. 8 bits: a byte per number and a float32 scale per row.
        """
        numbers = num_out * num_in
        if self.bits == 8:
            yield numbers, "weights"
            yield num_out * 4, "quantization_state"
            return
        scales = -(-numbers // BLOCK_NUMBERS)
        yield numbers // 2, "weights"
        yield scales if self.double_quant else scales * 4, "quantization_state"
        yield 16 * 4, "quantization_state"  # the code book
        if self.double_quant:
            yield -(-scales // SCALES_PER_BLOCK) * 4, "quantization_state"
            yield 256 * 4, "quantization_state"  # the code book of the scales
            yield 4, "quantization_state"  # their mean

    def dequantized_bytes(self, num_out: int, num_in: int) -> int:
        """The 16-bit copy of one layer that a product with a large batch makes, forward and backward.

        Source: _dequant_linear_fallback (4 bits, forward), MatMul4Bit.backward, MatMul8bitLt.backward.
        """
        return num_out * num_in * 2

    def forward_scratch_bytes(
        self, num_tokens: int, num_out: int, num_in: int, is_float16: bool
    ) -> int:
        """What the forward product needs beside its output.

        4 bits: the 16-bit copy of the weight. 8 bits: first the input in float16, its absolute values, a byte for each
        that says whether it is an outlier, and the input in int8; then that, the product in int32 and in float16.
        Sources: int8_vectorwise_quant in bitsandbytes/backends/cuda/ops.py, int8_scaled_mm in backends/default/ops.py.
        """
        if self.bits == 4:
            return self.dequantized_bytes(num_out, num_in)
        copy_bytes = 0 if is_float16 else 2
        quantizing = (copy_bytes + 4) * num_in - 2 * num_out  # the output is not there yet
        return num_tokens * max(quantizing, num_in + (4 + copy_bytes) * num_out)
