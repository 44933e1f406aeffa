"""A model of any depth from shallow ones: layers repeat, so memory is linear in their number.

Exact, as long as peaks are compared where the same layers are at work: near the first and near the last layer.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from core.memory.program.program import LayerKind, Program
from core.memory.simulator.autograd import MOST_TENSORS_UNDER_WAY
from core.memory.simulator.device_memory import Kind
from core.memory.step import PHASES, Phase, Simulation, sections

Composition = Counter[Kind]
"""Bytes by kind."""


@dataclass(frozen=True)
class Peaks:
    """What a run comes to."""

    by_phase: Mapping[Phase, Composition]
    """What is alive at the peak of each phase."""
    largest_activation_bytes: int
    """The largest tensor that a layer makes."""


# Kept by program, not by job: most edits of a job, such as its learning rate, leave the program as it is.
@lru_cache(maxsize=256)
def find_peaks(program: Program) -> Peaks:
    """The peaks of each phase of a program's run.

    A segment's peak grows by the same bytes with every layer of a kind: simulate a shallow model with every kind at
    both ends, then once more with one layer of each kind added in the middle, and extend. Where a model mixes kinds,
    they stand at each end in the order in which the model has them, but closer: the estimate may be a few layers'
    inputs too high. Frozen layers and those that train are extended apart.
    """
    kinds = program.layer_kinds()
    num_ends = max(2, *(len(set(section)) for section in sections(kinds)))
    parts = [
        _shallow(section, num_ends, _num_waiting(program, section)) for section in sections(kinds)
    ]
    base, largest = _simulated(program, _joined(parts), num_ends)
    total = {segment: composition.copy() for segment, composition in base.items()}
    for number, section in enumerate(sections(kinds)):
        for kind in dict.fromkeys(section):
            if num_more := section.count(kind) - sum(parts[number], ()).count(kind):
                first, last = parts[number]
                parts_deeper = [*parts[:number], ((*first, kind), last), *parts[number + 1 :]]
                deeper, _ = _simulated(program, _joined(parts_deeper), num_ends)
                _extend(total, base, deeper, num_more)
    return _peaks(total, largest)


def _shallow(
    section: tuple[LayerKind, ...], num_ends: int, num_waiting: int
) -> tuple[tuple[LayerKind, ...], tuple[LayerKind, ...]]:
    """The first and the last layers of a section that stand for all: every kind at both ends, and in front as many more
    as wait for something; or all that there are."""
    first = tuple(dict.fromkeys(section))
    last = tuple(dict.fromkeys(reversed(section)))[::-1]
    if len(section) <= 2 * num_ends + num_waiting + len(first):
        return section, ()
    repeats = -(-(num_ends + num_waiting) // len(first))
    return (first * repeats)[: num_ends + num_waiting], (last * repeats)[-num_ends:]


def _num_waiting(program: Program, section: tuple[LayerKind, ...]) -> int:
    """Checkpointed layers whose inputs are on their way to main memory at once: one more does not add to them. Where
    kinds mix, others save more than that each."""
    return MOST_TENSORS_UNDER_WAY if program.offloads_activations and len(set(section)) == 1 else 0


def _joined(
    parts: list[tuple[tuple[LayerKind, ...], tuple[LayerKind, ...]]],
) -> tuple[LayerKind, ...]:
    return tuple(kind for first, last in parts for kind in (*first, *last))


def _extend(
    total: dict[str, Composition],
    base: Mapping[str, Composition],
    deeper: Mapping[str, Composition],
    num_more: int,
) -> None:
    """Add what so many more layers of a kind would, each as much as one did."""
    for segment, composition in base.items():
        for part, num_bytes in deeper[segment].items():
            total[segment][part] += num_more * (num_bytes - composition[part])


def _simulated(
    program: Program, kinds: tuple[LayerKind, ...], num_ends: int
) -> tuple[Mapping[str, Composition], int]:
    """The composition at the peak of each segment, and the largest activation."""
    heap = Simulation(program, kinds, num_ends).play().heap
    activations = (
        size for size, kind in zip(heap.sizes, heap.kinds, strict=True) if kind == "activations"
    )
    return heap.compositions(), max(activations)


def _peaks(segments: Mapping[str, Composition], largest: int) -> Peaks:
    """The segment with the highest peak in each phase."""
    by_phase: dict[Phase, list[Composition]] = {phase: [] for phase in PHASES}
    for segment, composition in segments.items():
        by_phase[_phase_of(segment)].append(composition)
    return Peaks(
        {phase: max(found, key=Counter.total) for phase, found in by_phase.items() if found},
        largest,
    )


def _phase_of(segment: str) -> Phase:
    """The phase that a segment of a Simulation belongs to."""
    return next(phase for phase in PHASES if segment.split("/")[0] == phase)
