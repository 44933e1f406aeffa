"""Uncertainty of an estimate: how far it may be off, and why. Knows nothing of tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

from core.job import JobSpec
from core.memory.context import context_of
from core.memory.program import is_cpu
from core.models import Gpu
from core.training.contract.stages import STAGES

ALLOCATED_ERROR = 0.02
"""Largest error of the allocated peak on fully specified measured runs, as a share."""
MIN_RESERVED_SHARE = 0.01
"""How much more than predicted may be reserved if every batch is equally long, as a share."""
VARYING_LENGTHS_SHARE = 0.05
"""The same if batches vary in length, since gaps of one do not fit the next. Replays of 24 jobs
with random lengths reserved 0 to 7 % more than was allocated, 2 % in the median."""
COMPILED_ERROR_SHARE = 0.03
"""What a compiled layer saves is known to the byte. The live bytes inside one compiled layer are
underestimated by at most 10 %; one layer is about a fifth of the total, so the total is off by at
most 2 % (tests/memory/test_compiled_layers.py). The rest is for kernels that are tried out."""
SEVERAL_DEVICES_SHARE = 0.10
"""One published peak of FSDP2 (torchtune, 70B LoRA on 8 cards) lies within a tenth of the estimate
(tests/memory/test_several_devices.py). No card has measured it here."""


@dataclass(frozen=True)
class Uncertainty:
    """Part of an estimate that cannot be known before the run."""

    reserved_share: float
    """How much more than predicted may be reserved, as a share."""
    why: str
    """One or two sentences for users."""


ON_CPU = Uncertainty(
    0.0, "Without a GPU the whole process counts, and the memory of Python's libraries varies."
)


def uncertainty_of(
    job: JobSpec, gpu: Gpu, longest_tokens: int, mean_tokens: float | None = None
) -> Uncertainty:
    """Return the uncertainty of a job's estimate.

    Rows have at most `longest_tokens` and on average `mean_tokens` (None: unknown).
    """
    if is_cpu(gpu):
        return ON_CPU
    reasons = tuple(_reasons(job, longest_tokens, mean_tokens))
    sentences = [sentence for _, sentence in reasons]
    if not context_of(gpu).is_known:
        sentences.append("The memory of the CUDA driver on this card has not been measured yet.")
    share = MIN_RESERVED_SHARE + sum(share for share, _ in reasons)
    return Uncertainty(share, " ".join(sentences))


def _reasons(
    job: JobSpec, longest_tokens: int, mean_tokens: float | None
) -> Iterator[tuple[float, str]]:
    """Yield (share to add, sentence) for each reason."""
    if job.packing:
        yield 0.0, "Packed rows are equally long, so little varies."
    else:
        share = VARYING_LENGTHS_SHARE - MIN_RESERVED_SHARE
        lengths = "may differ in length"
        if mean_tokens is not None:
            share *= max(0.0, 1 - mean_tokens / longest_tokens)
            lengths = f"have {mean_tokens:.0f} tokens on average"
        gaps = "and batches of different lengths leave different gaps"
        yield share, f"Rows {lengths}, {longest_tokens} at most, {gaps}."
    if STAGES[job.stage].generates:
        yield 0.0, "Answers are assumed to be as long as allowed."
    if job.num_devices > 1:
        yield SEVERAL_DEVICES_SHARE, "Several GPUs have not been measured yet."
    if job.torch_compile:
        yield COMPILED_ERROR_SHARE, "A compiled layer chooses the order of its operations itself."
