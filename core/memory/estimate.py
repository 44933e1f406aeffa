"""MemoryEstimate and the function that makes it. Adds up simulated peaks; never simulates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

from core.job import JobSpec
from core.memory.components import COMPONENTS, Component
from core.memory.context import Context
from core.memory.extrapolate import extrapolate_peaks
from core.memory.program import Program, program_of
from core.memory.resident import Totals, totals_of
from core.memory.several_devices import room_of_each
from core.memory.simulator import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES
from core.memory.step import MemoryPhase
from core.memory.uncertainty import ALLOCATED_ERROR, Uncertainty, uncertainty_of
from core.models import Gpu, ModelShape

Verdict = Literal["fits", "tight", "does_not_fit"]
TIGHT_SHARE = 0.94
"""Share of the capacity above which a job is tight: an estimate is good to about 2 %, and a display
needs memory too."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of a job, from the simulation or from a trace."""

    phases: Mapping[MemoryPhase, int]
    """Allocated peak of each phase, in bytes."""
    at_peak: Mapping[Component, int]
    """Bytes of each component at the highest of these peaks."""
    gap_bytes: int
    """Bytes that PyTorch reserves beyond that."""
    totals: Totals
    notes: Mapping[Component, str]
    """One sentence about each component."""


@dataclass(frozen=True)
class ComponentSize:
    """Bytes of one component at the peak."""

    name: Component
    bytes: int
    note: str
    """One sentence about the component, shown on hover."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one job on one card."""

    components: tuple[ComponentSize, ...]
    """Components at the peak, without empty ones. They add up to `total_bytes`."""
    phases: Mapping[MemoryPhase, int]
    """Predicted allocated peak of each phase, in bytes."""
    peak_allocated_bytes: int
    """torch.cuda.max_memory_allocated()."""
    peak_reserved_bytes: int
    """torch.cuda.max_memory_reserved()."""
    total_bytes: int
    """Memory of the process: reserved, paged optimizer states and CUDA context, as nvidia-smi shows
    it; on a processor tensors and libraries."""
    low_bytes: int
    high_bytes: int
    """Bounds of the total."""
    why: str
    """Why the bounds are as wide as they are."""
    capacity_bytes: int
    pageable_bytes: int
    """Paged optimizer states in the total. They may wait in main memory, but not on Windows."""
    verdict: Verdict
    binding_phase: MemoryPhase
    """Phase with the highest peak."""
    num_parameters: int
    num_trainable_parameters: int
    peak: PeakMemory
    uncertainty: Uncertainty
    context: Context

    @property
    def resident_bytes(self) -> int:
        """Bytes of the total that must be on the card, without what may be paged out."""
        return self.total_bytes - self.pageable_bytes

    def to_json(self) -> dict[str, object]:
        """Return the object that `estimate --json` prints, without `fixes` and `speed`."""
        values = {**vars(self), "phases": dict(self.phases)}
        values["components"] = [asdict(part) for part in self.components]
        for name in ("peak", "uncertainty", "context"):
            del values[name]
        return values


@lru_cache(maxsize=1024)
def estimate(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    longest_row_tokens: int | None = None,
    *,
    mean_row_tokens: float | None = None,
) -> MemoryEstimate:
    """Return the memory that training this job takes on this card, at its longest possible batch.

    Rows have at most `longest_row_tokens` if the data is known to be shorter than `job.max_length`.
    The range narrows as `mean_row_tokens` approaches that maximum. Raises SpecError for a job that
    cannot run.
    """
    program = program_of(job, shape, gpu, longest_row_tokens)
    peaks = extrapolate_peaks(program)
    phases = {phase: composition.total() for phase, composition in peaks.by_phase.items()}
    highest = max(peaks.by_phase.values(), key=Counter.total)
    gap_bytes = fragmentation_bytes(program, peaks.largest_activation_bytes)
    peak = PeakMemory(phases, highest, gap_bytes, totals_of(program), COMPONENTS)
    longest = min(job.max_length, longest_row_tokens or job.max_length)
    uncertainty = uncertainty_of(job, gpu, longest, mean_row_tokens)
    capacity_bytes, context = room_of_each(gpu, program.num_devices)
    return estimate_of(peak, capacity_bytes, uncertainty, context)


def fragmentation_bytes(program: Program, largest_activation_bytes: int) -> int:
    """Return the reserved but unusable memory at the peak, with expandable segments.

    The tensor that makes the peak found no gap large enough for it, so the gaps together are about
    as large as the largest activation; and the last page of each pool is only partly used. A replay
    of whole runs through the allocator agrees within 1 % of the reserved bytes in most cases
    (tests/memory/test_extrapolate.py) but jumps with every token, while this grows with the batch,
    as an estimate should. A CPU has no such pools.
    """
    if program.on_cpu:
        return 0
    return largest_activation_bytes + LARGE_SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def estimate_of(
    peak: PeakMemory, capacity_bytes: int, uncertainty: Uncertainty, context: Context
) -> MemoryEstimate:
    """Return the estimate of a job with this peak on a card of this capacity."""
    binding_phase = max(peak.phases, key=lambda phase: peak.phases[phase])
    allocated = peak.phases[binding_phase]
    reserved = allocated + peak.gap_bytes
    paged = peak.totals.paged_bytes
    total = reserved + paged + context.expected_bytes
    sizes = Counter(peak.at_peak)
    sizes["optimizer_states"] += paged
    sizes["cuda_context"] = context.expected_bytes
    sizes["fragmentation"] = peak.gap_bytes
    notes = {**peak.notes, "cuda_context": context.note}
    parts = [ComponentSize(name, sizes[name], note) for name, note in notes.items()]
    high = round(reserved * (1 + ALLOCATED_ERROR + uncertainty.reserved_share))
    return MemoryEstimate(
        components=tuple(part for part in parts if part.bytes),
        phases=peak.phases,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        total_bytes=total,
        low_bytes=round(allocated * (1 - ALLOCATED_ERROR)) + context.low_bytes,
        high_bytes=high + paged + context.high_bytes,
        why=uncertainty.why,
        capacity_bytes=capacity_bytes,
        pageable_bytes=paged,
        verdict=_verdict(total, capacity_bytes, paged),
        binding_phase=binding_phase,
        num_parameters=peak.totals.num_parameters,
        num_trainable_parameters=peak.totals.num_trainable_parameters,
        peak=peak,
        uncertainty=uncertainty,
        context=context,
    )


def _verdict(needed_bytes: int, capacity_bytes: int, pageable_bytes: int) -> Verdict:
    """Return whether a job fits.

    Needed is the allocated peak with its gaps: an allocator that runs out of memory frees unused
    segments first. A job that fits only because paged states make room is tight: the driver moves
    them to main memory, and back at each optimizer step.
    """
    if needed_bytes - pageable_bytes > capacity_bytes:
        return "does_not_fit"
    if needed_bytes > TIGHT_SHARE * capacity_bytes:
        return "tight"
    return "fits"
