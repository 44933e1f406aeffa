"""Calibration of estimates by past runs on the same machine and card.

Corrects the size of the CUDA context and the ratio of reserved to allocated memory, never a tensor.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.memory.components import Component
from core.memory.context import Context
from core.memory.estimate import MemoryEstimate, high_bytes_of, verdict_of

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
    """Memory of the process beyond what PyTorch reserved; None if it was not measured."""

    @property
    def gap_ratio(self) -> float:
        """Measured ratio of reserved to allocated memory, divided by the predicted one."""
        measured = self.reserved_bytes / self.allocated_bytes
        return measured / (self.predicted_reserved_bytes / self.predicted_allocated_bytes)


def refine(estimate: MemoryEstimate, past: Sequence[PastRun]) -> MemoryEstimate:
    """Return an estimate with the context and the reserved ratio of past runs, if there are any."""
    runs = [run for run in past if run.allocated_bytes > 0 and run.predicted_allocated_bytes > 0]
    context = _context(estimate.context, [run.context_bytes for run in runs if run.context_bytes])
    ratio = 1.0
    if len(runs) >= MIN_RUNS:
        ratio = statistics.median(run.gap_ratio for run in runs)
    allocated, pageable = estimate.peak_allocated_bytes, estimate.pageable_bytes
    reserved = max(allocated, round(estimate.peak_reserved_bytes * ratio))
    total = reserved + pageable + context.expected_bytes
    corrected: dict[Component, int] = {
        "cuda_context": context.expected_bytes,
        "fragmentation": reserved - allocated,
    }
    components = [
        replace(part, bytes=corrected.get(part.name, part.bytes)) for part in estimate.components
    ]
    return replace(
        estimate,
        components=tuple(part for part in components if part.bytes),
        context=context,
        peak_reserved_bytes=reserved,
        total_bytes=total,
        verdict=verdict_of(total, estimate.capacity_bytes, pageable),
        low_bytes=estimate.low_bytes - estimate.context.low_bytes + context.low_bytes,
        high_bytes=high_bytes_of(reserved, estimate.reserved_share, pageable, context),
    )


def _context(assumed: Context, measured: Sequence[int]) -> Context:
    """Return the measured context, or the assumed one. There is none without a card."""
    if not measured or not assumed.expected_bytes:
        return assumed
    return Context(round(statistics.median(measured)), min(measured), max(measured))
