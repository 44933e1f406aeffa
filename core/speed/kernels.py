"""The share of its rated speed that a card reaches, by what computes: matrix products and attention kernels."""

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
"""Compute capability -> share of the rated FLOP/s that the best matrix product reaches.

A100, H100, B200: maximum achievable matmul FLOP/s, stas00/ml-engineering. RTX 3090 and 4090 exceed their rated clock:
whole LoRA trainings reach 0.8 (axolotl #3734) and 0.7 of it (torchtune). T4: set so that one reaches about 0.4.
"""
MATMUL_SHARE = 0.85
"""The same for a capability that nobody measured: the middle of the others."""
COMPILED_SHARE, EAGER_SHARE = 0.80, 0.70
"""Share of the best rate that the products of a model reach, as they come and with the gaps between kernels. From
published rates: torchtune, 3B on an A100, and NeMo AutoModel, 8B on an H100 (tests/test_speed.py)."""


@dataclass(frozen=True)
class AttentionKernel:
    """How a kernel computes attention."""

    share: float
    """Of the best matmul rate."""
    skips_masked: bool
    """Leaves out the scores that causality masks: half of them, or all beyond a window."""
    sees_documents: bool = False
    """Leaves out the scores between the documents of a packed row."""
    forward_bytes_per_score: int = 0
    backward_bytes_per_score: int = 0


FLASH = AttentionKernel(share=0.35, skips_masked=True)
"""FlashAttention 2: forward 309 to 370 of an H100's 794 TFLOP/s (a figure in the FlashAttention 3 paper), less back."""
VARLEN = AttentionKernel(share=0.35, skips_masked=True, sees_documents=True)
"""The same, told where each document begins."""
FLEX = AttentionKernel(share=0.25, skips_masked=True, sees_documents=True)
"""Blocks without scores are left out: forward 27 ms of FlashAttention 2 are 38 of it on an H100 (pytorch #148711)."""
EFFICIENT = AttentionKernel(share=0.25, skips_masked=True)
"""The memory-efficient kernel that stands in for it: about two thirds as fast. Assumed, not measured in training."""
MASKED = AttentionKernel(share=0.25, skips_masked=False)
"""The same with a mask, which it reads for every score."""
EAGER = AttentionKernel(
    0.35, skips_masked=False, forward_bytes_per_score=24, backward_bytes_per_score=46
)
"""Scores in memory: written, scaled, masked, softmax in float32, cast and read; and back. Counted in
eager_attention_forward (transformers) and the softmax backward kernel (ATen)."""


def best_flops(gpu: Gpu) -> float:
    """FLOP/s that the best matrix product reaches on a card."""
    return gpu.flops * MATMUL_SHARES.get(gpu.compute_capability, MATMUL_SHARE)


def attention_kernel(job: JobSpec, shape: ModelShape, gpu: Gpu) -> AttentionKernel:
    """The kernel that the training program and PyTorch choose. Rows that are padded on the right need no mask, joined
    ones and those that an answer is drawn for do."""
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
    return FLASH if gpu.compute_capability >= (8, 0) else EFFICIENT


def needs_eager(shape: ModelShape) -> bool:
    """True if a model's attention is more than PyTorch's finished kernels can compute: capped scores, or sinks."""
    return bool(shape.attn_logit_softcapping or shape.family.has_sinks)


def can_use_varlen(shape: ModelShape, gpu: Gpu) -> bool:
    """True if the documents of a joined row can be told apart without a mask, by PyTorch's variable-length kernel."""
    return gpu.compute_capability >= (8, 0) and not needs_eager(shape)
