"""Share of a card's rated speed that matrix products and attention kernels reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.training.contract.stages import STAGES

MATMUL_SHARES: Mapping[tuple[int, int], float] = MappingProxyType(
    {
        (7, 5): 0.75,
        (8, 0): 271 / 312,
        (8, 6): 1.0,
        (8, 9): 1.0,
        (9, 0): 794 / 989,
        (10, 0): 1745 / 2250,
    }
)
"""Compute capability -> share of the rated FLOP/s that the fastest matrix product reaches.

A100, H100, B200: maximum achievable matmul FLOP/s, stas00/ml-engineering. RTX 3090 and 4090 exceed
their rated clock: whole LoRA trainings reach 0.8 (axolotl #3734) and 0.7 of it (torchtune). T4: set
so that a training reaches about 0.4.
"""
DEFAULT_MATMUL_SHARE = 0.85
"""Share for other compute capabilities: the middle of the table."""
COMPILED_SHARE = 0.80
EAGER_SHARE = 0.70
"""Share of the fastest rate that a model's matrix products reach, with their sizes and the gaps
between kernels. From published rates: torchtune, 3B on an A100, and NeMo AutoModel, 8B on an H100
(tests/speed/test_published_rates.py)."""


@dataclass(frozen=True)
class AttentionKernel:
    """Facts of a kernel that computes attention."""

    share: float
    """Share of the fastest matmul rate."""
    skips_masked: bool
    """Skips masked scores: half of them in causal attention, or all beyond a window."""
    sees_documents: bool = False
    """Skips the scores between the documents of a packed row."""
    forward_bytes_per_score: int = 0
    backward_bytes_per_score: int = 0


FLASH = AttentionKernel(share=0.35, skips_masked=True)
"""FlashAttention 2. Forward: 309 to 370 of an H100's 794 TFLOP/s (FlashAttention 3 paper)."""
VARLEN = AttentionKernel(share=0.35, skips_masked=True, sees_documents=True)
"""FlashAttention with the start of each document."""
FLEX = AttentionKernel(share=0.25, skips_masked=True, sees_documents=True)
"""Skips blocks without scores. H100 forward: 38 ms, FlashAttention 2: 27 (pytorch #148711)."""
EFFICIENT = AttentionKernel(share=0.25, skips_masked=True)
"""Memory-efficient kernel, used before Ampere: about two thirds as fast. Assumed, not measured."""
MASKED = AttentionKernel(share=0.25, skips_masked=False)
"""Memory-efficient kernel with a mask, which it reads for every score."""
EAGER = AttentionKernel(
    share=0.35, skips_masked=False, forward_bytes_per_score=24, backward_bytes_per_score=46
)
"""Scores in memory: written, scaled, masked, softmax in float32, cast and read; and back. Counted
in eager_attention_forward (transformers) and the softmax backward kernel (ATen)."""


def matmul_flops(gpu: Gpu) -> float:
    """Return the FLOP/s that the fastest matrix product reaches on a card."""
    return gpu.flops * MATMUL_SHARES.get(gpu.compute_capability, DEFAULT_MATMUL_SHARE)


def attention_kernel(job: JobSpec, shape: ModelShape, gpu: Gpu) -> AttentionKernel:
    """Return the kernel that the training program and PyTorch choose.

    Rows padded on the right need no mask. Packed rows do, and so do rows that answers are drawn
    for, which are padded on the left.
    """
    if job.attn_implementation == "flex_attention":
        return FLEX
    if needs_eager(shape) or job.attn_implementation == "eager":
        return EAGER
    if job.attn_implementation == "flash_attention_2":
        return VARLEN
    if job.attn_implementation == "varlen" and can_use_varlen(shape, gpu):
        return VARLEN
    pads_left = STAGES[job.stage].generates and job.per_device_train_batch_size > 1
    if job.packing or pads_left:
        return MASKED
    if gpu.compute_capability >= (8, 0):
        return FLASH
    return EFFICIENT


def needs_eager(shape: ModelShape) -> bool:
    """Return True if SDPA cannot compute the model's attention: capped scores, or sinks."""
    return bool(shape.attn_logit_softcapping or shape.family.has_sinks)


def can_use_varlen(shape: ModelShape, gpu: Gpu) -> bool:
    """Return True if PyTorch's varlen kernel can separate packed documents without a mask."""
    return gpu.compute_capability >= (8, 0) and not needs_eager(shape)
