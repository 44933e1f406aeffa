"""MemoryEstimate, and the one function that makes it. Adds up what the simulation found; never simulates itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from core.job import JobSpec
from core.memory.allocator import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES
from core.memory.depth import Composition, find_peaks, sum_over_layers
from core.memory.job_program import program_of
from core.memory.precision import is_cpu
from core.memory.program import Program
from core.memory.resident import num_parameters, num_trainable_parameters, paged_state_bytes
from core.memory.step import Phase
from core.presets import Gpu
from core.shapes import ModelShape

Verdict = Literal["fits", "tight", "does_not_fit"]
MIB = 2**20
TIGHT_SHARE = 0.94
"""Above this share of the capacity a job is tight: an estimate is good to about 2 %, and a display needs some too."""
ERROR = 0.02
"""How far the allocated peak may be off, as a share: the worst miss on fully specified measured runs is below it."""
LEAST_SPREAD = 0.01
"""The same when every batch is as long as the next."""
SPREAD_OF_VARYING_LENGTHS = 0.05
"""How much more may be reserved, as a share, when every batch has other lengths: gaps of one do not fit the next.
Replays of 24 jobs with random lengths reserved 0 to 7 % more than was allocated, 2 % in the median."""
NOTES: Mapping[str, str] = {
    "weights": "The model's own numbers, as they are loaded.",
    "quantization_state": "Scales and code books that turn 4- or 8-bit weights back into numbers.",
    "adapters": "The small matrices that LoRA trains.",
    "gradients": "One number for every number that trains, from the backward pass to the optimizer step.",
    "optimizer_states": "What the optimizer remembers about every number that trains.",
    "activations": "Intermediate results that wait for the backward pass; they grow with batch and length.",
    "logits": "Scores of every word of the vocabulary, in tiles, where the loss is computed.",
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
    verdict: Verdict
    binding_phase: Phase
    """The phase with the highest peak."""
    low_bytes: int
    high_bytes: int
    """Where the total should lie."""
    num_parameters: int
    num_trainable_parameters: int

    def to_json(self) -> dict[str, object]:
        """The object that `estimate --json` prints, without `fixes` and `speed`."""
        return {
            "components": [{"name": part.name, "bytes": part.bytes, "note": part.note} for part in self.components],
            "phases": dict(self.phases),
            "peak_allocated_bytes": self.peak_allocated_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
            "total_bytes": self.total_bytes,
            "low_bytes": self.low_bytes,
            "high_bytes": self.high_bytes,
            "capacity_bytes": self.capacity_bytes,
            "verdict": self.verdict,
            "binding_phase": self.binding_phase,
            "num_parameters": self.num_parameters,
            "num_trainable_parameters": self.num_trainable_parameters,
        }


@dataclass(frozen=True)
class Context:
    """Memory that the CUDA driver takes per process, in bytes: expected, at least, at most."""

    expected_bytes: int
    low_bytes: int
    high_bytes: int


NO_CONTEXT = Context(0, 0, 0)
MEASURED_CONTEXTS: Mapping[tuple[int, int], Context] = {
    # 140.9 MiB in 69 of 79 processes on a T4, torch 2.10 to 2.14 (tests/measured/measured_peaks.jsonl).
    (7, 5): Context(141 * MIB, 140 * MIB, 145 * MIB),
}
UNMEASURED_CONTEXT = Context(450 * MIB, 141 * MIB, 723 * MIB)
"""Cards that nobody measured: from what a T4 takes to the largest report found (a PyTorch forum thread of 2020)."""


@lru_cache(maxsize=1024)
def estimate(job: JobSpec, shape: ModelShape, gpu: Gpu, longest_row_tokens: int | None = None) -> MemoryEstimate:
    """The memory that training this job takes on this card, at its longest possible batch.

    Rows have `longest_row_tokens` if the data is known to be shorter than `job.max_length`. Raises SpecError for a job
    that cannot run on this model.
    """
    program = program_of(job, shape, gpu, longest_row_tokens)
    peaks = find_peaks(program)
    phases = {phase: composition.total() for phase, composition in peaks.by_phase.items()}
    binding = max(phases, key=lambda phase: phases[phase])
    context = context_of(gpu)
    paged_bytes = sum_over_layers(program, lambda kinds: paged_state_bytes(program, kinds))
    gap_bytes = fragmentation_bytes(program, peaks.largest_activation_bytes)
    reserved = phases[binding] + gap_bytes
    composition = peaks.by_phase[binding].copy()
    composition["optimizer_states"] += paged_bytes
    total = reserved + paged_bytes + context.expected_bytes
    spread = 0.0 if program.on_cpu else LEAST_SPREAD if job.packing else SPREAD_OF_VARYING_LENGTHS
    return MemoryEstimate(
        components=_components(composition, context.expected_bytes, gap_bytes),
        phases=phases,
        peak_allocated_bytes=phases[binding],
        peak_reserved_bytes=reserved,
        total_bytes=total,
        capacity_bytes=gpu.capacity_bytes,
        verdict=_verdict(total, gpu.capacity_bytes),
        binding_phase=binding,
        low_bytes=round(phases[binding] * (1 - ERROR)) + context.low_bytes,
        high_bytes=round(reserved * (1 + ERROR + spread)) + paged_bytes + context.high_bytes,
        num_parameters=sum_over_layers(program, lambda kinds: num_parameters(program, kinds)),
        num_trainable_parameters=sum_over_layers(program, lambda kinds: num_trainable_parameters(program, kinds)),
    )


def context_of(gpu: Gpu) -> Context:
    """The CUDA context of a process on this card."""
    if is_cpu(gpu):
        return NO_CONTEXT
    return MEASURED_CONTEXTS.get(gpu.compute_capability, UNMEASURED_CONTEXT)


def fragmentation_bytes(program: Program, largest_activation_bytes: int) -> int:
    """Reserved but unusable memory at the peak, with expandable segments.

    The tensor that makes the peak found no gap that was large enough, so the gaps come to about the largest tensor
    that a layer makes; and the last page of each pool is partly used. Replaying whole runs through the allocator gives
    the same within 1 % of the reserved bytes in most cases (tests/test_memory.py), but jumps up and down with every
    token; this grows with the batch, as an estimate should. Nothing on a CPU.
    """
    return 0 if program.on_cpu else largest_activation_bytes + LARGE_SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def _components(composition: Composition, context_bytes: int, gap_bytes: int) -> tuple[Component, ...]:
    sizes = dict[str, int]((*composition.items(), ("cuda_context", context_bytes), ("fragmentation", gap_bytes)))
    return tuple(Component(name, sizes[name], note) for name, note in NOTES.items() if sizes.get(name))


def _verdict(needed_bytes: int, capacity_bytes: int) -> Verdict:
    """Needed is what is allocated at once plus its gaps: an allocator that runs out frees its unused segments first."""
    if needed_bytes > capacity_bytes:
        return "does_not_fit"
    return "tight" if needed_bytes > TIGHT_SHARE * capacity_bytes else "fits"
