"""Calibration of estimates by past runs on the same machine and card.

Corrects the size of the CUDA context and the ratio of reserved to allocated memory, never a tensor.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.memory.estimate import MemoryEstimate, estimate_of

MIN_RUNS = 3
"""Runs needed before their reserved memory counts: a single one may have had unusual rows."""


@dataclass(frozen=True)
class PastRun:
    """Predicted and measured peaks of a past run, in bytes."""

    predicted_allocated_bytes: int
    predicted_reserved_bytes: int
    allocated_bytes: int
    """torch.cuda.max_memory_allocated()."""
    reserved_bytes: int
    """torch.cuda.max_memory_reserved()."""
    context_bytes: int | None = None
    """Memory of the process beyond what PyTorch reserved, or on a processor beyond the predicted
    tensors; None if it was not measured."""

    @property
    def gap_ratio(self) -> float:
        """Measured ratio of reserved to allocated memory, divided by the predicted one."""
        measured = self.reserved_bytes / self.allocated_bytes
        return measured / (self.predicted_reserved_bytes / self.predicted_allocated_bytes)


def refine(estimate: MemoryEstimate, past: Sequence[PastRun]) -> MemoryEstimate:
    """Return an estimate with the context and the reserved ratio of past runs, if there are any."""
    runs = [run for run in past if run.allocated_bytes > 0 and run.predicted_allocated_bytes > 0]
    context = estimate.context
    measured = [run.context_bytes for run in past if run.context_bytes]
    if measured:
        middle = round(statistics.median(measured))
        context = replace(
            context, expected_bytes=middle, low_bytes=min(measured), high_bytes=max(measured)
        )
    ratio = 1.0
    if len(runs) >= MIN_RUNS:
        ratio = statistics.median(run.gap_ratio for run in runs)
    reserved = round(estimate.peak_reserved_bytes * ratio)
    gap_bytes = max(0, reserved - estimate.peak_allocated_bytes)
    peak = replace(estimate.peak, gap_bytes=gap_bytes)
    return estimate_of(peak, estimate.capacity_bytes, estimate.uncertainty, context)
