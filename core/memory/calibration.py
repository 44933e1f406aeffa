"""What past runs on a machine teach about its next estimate: the size of the CUDA context, and how much more than it
allocates PyTorch reserves. Never corrects a tensor.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.memory.context import Context
from core.memory.estimate import MemoryEstimate, verdict_of
from core.memory.uncertainty import ERROR

LEAST_RUNS = 3
"""So many runs it takes before their reserved memory counts: a single one may have met rows of odd lengths."""


@dataclass(frozen=True)
class PastRun:
    """What was foretold for a run on this machine and card, and what was measured, in bytes."""

    predicted_allocated_bytes: int
    predicted_reserved_bytes: int
    allocated_bytes: int
    """torch.cuda.max_memory_allocated()."""
    reserved_bytes: int
    """torch.cuda.max_memory_reserved()."""
    context_bytes: int | None = None
    """What the process had beyond what it reserved at that moment; None if it was not measured."""

    @property
    def gap_ratio(self) -> float:
        """Reserved over allocated, measured against foretold."""
        measured = self.reserved_bytes / self.allocated_bytes
        return measured / (self.predicted_reserved_bytes / self.predicted_allocated_bytes)


def refine(estimate: MemoryEstimate, past: Sequence[PastRun]) -> MemoryEstimate:
    """An estimate with the context and the reserved ratio of past runs; the same if there are none."""
    sound = [run for run in past if run.allocated_bytes > 0 and run.predicted_allocated_bytes > 0]
    context = _context(estimate.context, [run.context_bytes for run in sound if run.context_bytes])
    ratio = statistics.median(run.gap_ratio for run in sound) if len(sound) >= LEAST_RUNS else 1.0
    reserved = max(estimate.peak_allocated_bytes, round(estimate.peak_reserved_bytes * ratio))
    total = reserved + estimate.pageable_bytes + context.expected_bytes
    sizes = {
        "cuda_context": context.expected_bytes,
        "fragmentation": reserved - estimate.peak_allocated_bytes,
    }
    components = (
        replace(part, bytes=sizes.get(part.name, part.bytes)) for part in estimate.components
    )
    return replace(
        estimate,
        components=tuple(part for part in components if part.bytes),
        context=context,
        peak_reserved_bytes=reserved,
        total_bytes=total,
        verdict=verdict_of(total, estimate.capacity_bytes, estimate.pageable_bytes),
        low_bytes=estimate.low_bytes - estimate.context.low_bytes + context.low_bytes,
        high_bytes=round(reserved * (1 + ERROR + estimate.spread))
        + estimate.pageable_bytes
        + context.high_bytes,
    )


def _context(assumed: Context, measured: Sequence[int]) -> Context:
    """The context that was measured, if it was; none where there is no card."""
    if not measured or not assumed.expected_bytes:
        return assumed
    return Context(round(statistics.median(measured)), min(measured), max(measured))
