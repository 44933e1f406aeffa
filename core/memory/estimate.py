"""MemoryEstimate, and the one function that makes it. Adds up what the simulation found; never simulates itself."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from core.job import JobSpec
from core.memory.context import Context, context_of
from core.memory.extrapolate import find_peaks
from core.memory.program.from_job import program_of
from core.memory.program.program import Program
from core.memory.resident import (
    num_parameters,
    num_trainable_parameters,
    paged_state_bytes,
    sum_over_layers,
)
from core.memory.simulator.allocator import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES
from core.memory.step import Phase
from core.memory.uncertainty import ERROR, Spread, spread_of
from core.models import Gpu, ModelShape

Verdict = Literal["fits", "tight", "does_not_fit"]
TIGHT_SHARE = 0.94
"""Above this share of the capacity a job is tight: an estimate is good to about 2 %, and a display needs some too."""
NOTES: Mapping[str, str] = {
    "weights": "The model's own numbers, as they are loaded.",
    "quantization_state": "Scales and code books that turn 4- or 8-bit weights back into numbers.",
    "adapters": "The small matrices that LoRA trains.",
    "gradients": "One number for every number that trains, from the backward pass to the optimizer step.",
    "optimizer_states": "What the optimizer remembers about every number that trains. Paged ones may leave the card.",
    "activations": "Intermediate results that wait for the backward pass; they grow with batch and length.",
    "logits": "Scores of every word of the vocabulary, in tiles, where the loss is computed.",
    "reference_model": "A frozen copy of the model as it was, to compare the answers with.",
    "value_model": "A second model that foretells rewards, and trains. Only an estimate: nothing trains it here.",
    "reward_model": "The model that scores the answers drawn; taken for as large as yours if its size is not known.",
    "generation_cache": "Keys and values of the answers being drawn, for every layer and every answer at once.",
    "temporary": "Buffers of one operation: gradients on their way back, unpacked weights, cuBLAS workspaces.",
    "cuda_context": "What the CUDA driver takes for itself in every process.",
    "fragmentation": "Gaps between tensors that PyTorch holds but cannot use.",
}


@dataclass(frozen=True)
class Component:
    """A part of the memory at the peak."""

    name: str
    bytes: int
    note: str
    """One sentence for a reader who hovers over it."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one job on one card."""

    components: tuple[Component, ...]
    """What is in use at the peak; absent means none. They add up to `total_bytes`."""
    phases: Mapping[Phase, int]
    """Predicted allocated peak of each phase, in bytes."""
    peak_allocated_bytes: int
    """torch.cuda.max_memory_allocated()."""
    peak_reserved_bytes: int
    """torch.cuda.max_memory_reserved()."""
    total_bytes: int
    """What nvidia-smi shows for the process: reserved, paged optimizer states and the CUDA context."""
    capacity_bytes: int
    pageable_bytes: int
    """Paged optimizer states among the total: what has no room waits in main memory, but not on Windows."""
    verdict: Verdict
    binding_phase: Phase
    """The phase with the highest peak."""
    low_bytes: int
    high_bytes: int
    """Where the total should lie."""
    why: str
    """Why that range is as wide as it is."""
    spread: float
    """How much more than foretold may be reserved, as a share."""
    context: Context
    num_parameters: int
    num_trainable_parameters: int

    def to_json(self) -> dict[str, object]:
        """The object that `estimate --json` prints, without `fixes` and `speed`."""
        return {
            "components": [
                {"name": part.name, "bytes": part.bytes, "note": part.note}
                for part in self.components
            ],
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
class Found:
    """What was found out about a job, by whatever means."""

    phases: Mapping[Phase, int]
    """Allocated peak of each phase, in bytes."""
    at_peak: Mapping[str, int]
    """Component -> bytes at the highest of these peaks."""
    gap_bytes: int
    """Reserved beyond that."""
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
    """The memory that training this job takes on this card, at its longest possible batch.

    Rows have `longest_row_tokens` if the data is known to be shorter than `job.max_length`; the closer to them their
    mean, the narrower the range. A reward model is as large as the model that trains unless `reward_shape` says
    otherwise. Raises SpecError for a job that cannot run.
    """
    program = program_of(job, shape, gpu, longest_row_tokens, reward_shape)
    peaks = find_peaks(program)
    phases = {phase: composition.total() for phase, composition in peaks.by_phase.items()}
    found = Found(
        phases=phases,
        at_peak=dict[str, int](
            peaks.by_phase[max(phases, key=lambda phase: phases[phase])].items()
        ),
        gap_bytes=fragmentation_bytes(program, peaks.largest_activation_bytes),
        paged_bytes=sum_over_layers(program, lambda kinds: paged_state_bytes(program, kinds)),
        num_parameters=sum_over_layers(program, lambda kinds: num_parameters(program, kinds)),
        num_trainable_parameters=sum_over_layers(
            program, lambda kinds: num_trainable_parameters(program, kinds)
        ),
    )
    longest = min(job.max_length, longest_row_tokens or job.max_length)
    return estimate_of(found, gpu, spread_of(job, gpu, longest, mean_row_tokens))


def estimate_of(
    found: Found, gpu: Gpu, spread: Spread, notes: Mapping[str, str] = NOTES
) -> MemoryEstimate:
    """The estimate that findings come to on a card; `notes` say what its components are, in their order."""
    binding = max(found.phases, key=lambda phase: found.phases[phase])
    allocated, context = found.phases[binding], context_of(gpu)
    reserved = allocated + found.gap_bytes
    total = reserved + found.paged_bytes + context.expected_bytes
    sizes = Counter(found.at_peak) + Counter(
        {
            "optimizer_states": found.paged_bytes,
            "cuda_context": context.expected_bytes,
            "fragmentation": found.gap_bytes,
        }
    )
    return MemoryEstimate(
        components=tuple(
            Component(name, sizes[name], note) for name, note in notes.items() if sizes[name]
        ),
        phases=found.phases,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        total_bytes=total,
        capacity_bytes=gpu.capacity_bytes,
        pageable_bytes=found.paged_bytes,
        verdict=verdict_of(total, gpu.capacity_bytes, found.paged_bytes),
        binding_phase=binding,
        low_bytes=round(allocated * (1 - ERROR)) + context.low_bytes,
        high_bytes=round(reserved * (1 + ERROR + spread.share))
        + found.paged_bytes
        + context.high_bytes,
        why=spread.why,
        spread=spread.share,
        context=context,
        num_parameters=found.num_parameters,
        num_trainable_parameters=found.num_trainable_parameters,
    )


def fragmentation_bytes(program: Program, largest_activation_bytes: int) -> int:
    """Reserved but unusable memory at the peak, with expandable segments.

    The tensor that makes the peak found no gap that was large enough, so the gaps come to about the largest tensor
    that a layer makes; and the last page of each pool is partly used. Replaying whole runs through the allocator gives
    the same within 1 % of the reserved bytes in most cases (tests/test_memory.py), but jumps up and down with every
    token; this grows with the batch, as an estimate should. Nothing on a CPU.
    """
    return (
        0
        if program.on_cpu
        else largest_activation_bytes + LARGE_SEGMENT_BYTES + SMALL_SEGMENT_BYTES
    )


def verdict_of(needed_bytes: int, capacity_bytes: int, pageable_bytes: int) -> Verdict:
    """Whether that fits. Needed is what is allocated at once plus its gaps: an allocator that runs out frees its unused
    segments first. Tight is, too, what only goes on because paged states make room: the driver moves them to main
    memory, and back at each optimizer step."""
    if needed_bytes - pageable_bytes > capacity_bytes:
        return "does_not_fit"
    return "tight" if needed_bytes > TIGHT_SHARE * capacity_bytes else "fits"
