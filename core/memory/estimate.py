"""MemoryEstimate and the function that makes it. Adds up simulated peaks; never simulates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from core.job import JobSpec
from core.memory.components import COMPONENTS, Component
from core.memory.context import Context, context_of
from core.memory.extrapolate import extrapolate_peaks
from core.memory.program import Program, program_of
from core.memory.resident import (
    num_parameters,
    num_trainable_parameters,
    paged_state_bytes,
    sum_over_layers,
)
from core.memory.simulator import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES
from core.memory.step import Phase
from core.memory.uncertainty import ALLOCATED_ERROR, Uncertainty, uncertainty_of
from core.models import Gpu, ModelShape

Verdict = Literal["fits", "tight", "does_not_fit"]
TIGHT_SHARE = 0.94
"""Share of the capacity above which a job is tight: an estimate is good to about 2 %, and a display
needs memory too."""


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
    phases: Mapping[Phase, int]
    """Predicted allocated peak of each phase, in bytes."""
    peak_allocated_bytes: int
    """torch.cuda.max_memory_allocated()."""
    peak_reserved_bytes: int
    """torch.cuda.max_memory_reserved()."""
    total_bytes: int
    """Memory of the process in nvidia-smi: reserved, paged optimizer states and CUDA context."""
    capacity_bytes: int
    pageable_bytes: int
    """Paged optimizer states in the total. They may wait in main memory, but not on Windows."""
    verdict: Verdict
    binding_phase: Phase
    """Phase with the highest peak."""
    low_bytes: int
    high_bytes: int
    """Bounds of the total."""
    why: str
    """Why the bounds are as wide as they are."""
    reserved_share: float
    """How much more than predicted may be reserved, as a share."""
    context: Context
    num_parameters: int
    num_trainable_parameters: int

    def to_json(self) -> dict[str, object]:
        """Return the object that `estimate --json` prints, without `fixes` and `speed`."""
        return {
            "components": [vars(part) for part in self.components],
            "phases": dict(self.phases),
            "peak_allocated_bytes": self.peak_allocated_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
            "total_bytes": self.total_bytes,
            "low_bytes": self.low_bytes,
            "high_bytes": self.high_bytes,
            "why": self.why,
            "capacity_bytes": self.capacity_bytes,
            "pageable_bytes": self.pageable_bytes,
            "verdict": self.verdict,
            "binding_phase": self.binding_phase,
            "num_parameters": self.num_parameters,
            "num_trainable_parameters": self.num_trainable_parameters,
        }


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of a job, from the simulation or from a trace."""

    phases: Mapping[Phase, int]
    """Allocated peak of each phase, in bytes."""
    at_peak: Mapping[Component, int]
    """Bytes of each component at the highest of these peaks."""
    gap_bytes: int
    """Bytes that PyTorch reserves beyond that."""
    paged_bytes: int
    """Optimizer states in managed memory."""
    num_parameters: int
    num_trainable_parameters: int


@lru_cache(maxsize=1024)
def estimate(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    longest_row_tokens: int | None = None,
    *,
    mean_row_tokens: float | None = None,
    reward_shape: ModelShape | None = None,
) -> MemoryEstimate:
    """Return the memory that training this job takes on this card, at its longest possible batch.

    Rows have at most `longest_row_tokens` if the data is known to be shorter than `job.max_length`.
    The range narrows as `mean_row_tokens` approaches that maximum. Without `reward_shape` a reward
    model counts as large as the trained model. Raises SpecError for a job that cannot run.
    """
    program = program_of(job, shape, gpu, longest_row_tokens, reward_shape)
    peaks = extrapolate_peaks(program)
    phases = {phase: composition.total() for phase, composition in peaks.by_phase.items()}
    found = PeakMemory(
        phases=phases,
        at_peak=peaks.by_phase[_binding_phase(phases)],
        gap_bytes=fragmentation_bytes(program, peaks.largest_activation_bytes),
        paged_bytes=sum_over_layers(program, lambda kinds: paged_state_bytes(program, kinds)),
        num_parameters=sum_over_layers(program, lambda kinds: num_parameters(program, kinds)),
        num_trainable_parameters=sum_over_layers(
            program, lambda kinds: num_trainable_parameters(program, kinds)
        ),
    )
    longest = min(job.max_length, longest_row_tokens or job.max_length)
    return estimate_of(found, gpu, uncertainty_of(job, gpu, longest, mean_row_tokens))


def estimate_of(
    peak: PeakMemory,
    gpu: Gpu,
    uncertainty: Uncertainty,
    notes: Mapping[Component, str] = COMPONENTS,
) -> MemoryEstimate:
    """Return the estimate that peaks amount to on a card; `notes` describe its components."""
    context = context_of(gpu)
    binding_phase = _binding_phase(peak.phases)
    allocated = peak.phases[binding_phase]
    reserved = allocated + peak.gap_bytes
    total = reserved + peak.paged_bytes + context.expected_bytes
    sizes = Counter(peak.at_peak)
    sizes["optimizer_states"] += peak.paged_bytes
    sizes["cuda_context"] = context.expected_bytes
    sizes["fragmentation"] = peak.gap_bytes
    share = uncertainty.reserved_share
    return MemoryEstimate(
        components=tuple(
            ComponentSize(name, sizes[name], note) for name, note in notes.items() if sizes[name]
        ),
        phases=peak.phases,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        total_bytes=total,
        capacity_bytes=gpu.capacity_bytes,
        pageable_bytes=peak.paged_bytes,
        verdict=verdict_of(total, gpu.capacity_bytes, peak.paged_bytes),
        binding_phase=binding_phase,
        low_bytes=round(allocated * (1 - ALLOCATED_ERROR)) + context.low_bytes,
        high_bytes=high_bytes_of(reserved, share, peak.paged_bytes, context),
        why=uncertainty.why,
        reserved_share=share,
        context=context,
        num_parameters=peak.num_parameters,
        num_trainable_parameters=peak.num_trainable_parameters,
    )


def _binding_phase(phases: Mapping[Phase, int]) -> Phase:
    return max(phases, key=lambda phase: phases[phase])


def fragmentation_bytes(program: Program, largest_activation_bytes: int) -> int:
    """Return the reserved but unusable memory at the peak, with expandable segments.

    The tensor that makes the peak found no gap large enough for it, so the gaps together are about
    as large as the largest activation; and the last page of each pool is only partly used. A replay
    of whole runs through the allocator agrees within 1 % of the reserved bytes in most cases
    (tests/memory/test_fragmentation.py) but jumps with every token, while this grows with the
    batch, as an estimate should. A CPU has no such pools.
    """
    if program.on_cpu:
        return 0
    return largest_activation_bytes + LARGE_SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def high_bytes_of(
    reserved_bytes: int, reserved_share: float, paged_bytes: int, context: Context
) -> int:
    """Return the upper bound of the total."""
    reserved = round(reserved_bytes * (1 + ALLOCATED_ERROR + reserved_share))
    return reserved + paged_bytes + context.high_bytes


def verdict_of(needed_bytes: int, capacity_bytes: int, pageable_bytes: int) -> Verdict:
    """Return whether a job fits.

    Needed is the allocated peak with its gaps: an allocator that runs out of memory frees unused
    segments first. A job that fits only because paged states make room is tight: the driver moves
    them to main memory, and back at each optimizer step.
    """
    if needed_bytes - pageable_bytes > capacity_bytes:
        return "does_not_fit"
    return "tight" if needed_bytes > TIGHT_SHARE * capacity_bytes else "fits"
