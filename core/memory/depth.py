"""A model of any depth from shallow ones: layers repeat, so memory is linear in their number.

Exact, as long as peaks are compared where the same layers are at work: near the first and near the last layer.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core.memory.heap import Kind
from core.memory.program import LayerKind, Program
from core.memory.step import PHASES, Phase, Simulation

Composition = Counter[Kind]
"""Bytes by kind."""


@dataclass(frozen=True)
class Peaks:
    """What a run comes to."""

    by_phase: Mapping[Phase, Composition]
    """What is alive at the peak of each phase."""
    largest_activation_bytes: int
    """The largest tensor that a layer makes."""


def find_peaks(program: Program) -> Peaks:
    """The peaks of each phase of a program's run.

    A segment's peak grows by the same bytes with every layer of a kind: simulate a shallow model with every kind at
    both ends, then once more with one layer of each kind added in the middle, and extend. Where a model mixes kinds,
    they stand at each end in the order in which the model has them, but closer: the estimate may be a few layers'
    inputs too high.
    """
    kinds = program.layer_kinds()
    first = tuple(dict.fromkeys(kinds))
    last = tuple(dict.fromkeys(reversed(kinds)))[::-1]
    if len(first) == 1:
        first = last = first * 2
    shallow = first + last
    if len(kinds) <= len(shallow) + len(set(first)):
        return _peaks(*_simulated(program, kinds, len(first)))
    base, largest = _simulated(program, shallow, len(first))
    total = {segment: composition.copy() for segment, composition in base.items()}
    for kind in set(first):
        deeper, _ = _simulated(program, (*first, kind, *last), len(first))
        num_more = kinds.count(kind) - shallow.count(kind)
        for segment, composition in base.items():
            for part, num_bytes in deeper[segment].items():
                total[segment][part] += num_more * (num_bytes - composition[part])
    return _peaks(total, largest)


def sum_over_layers(program: Program, measure: Callable[[tuple[LayerKind, ...]], int]) -> int:
    """`measure` of the whole model, when each layer adds what it adds alone."""
    kinds, outside = program.layer_kinds(), measure(())
    return outside + sum(kinds.count(kind) * (measure((kind,)) - outside) for kind in dict.fromkeys(kinds))


def _simulated(program: Program, kinds: tuple[LayerKind, ...], num_ends: int) -> tuple[Mapping[str, Composition], int]:
    """The composition at the peak of each segment, and the largest activation."""
    heap = Simulation(program, kinds, num_ends).play().heap
    activations = (size for size, kind in zip(heap.sizes, heap.kinds, strict=True) if kind == "activations")
    return heap.compositions(), max(activations)


def _peaks(segments: Mapping[str, Composition], largest: int) -> Peaks:
    """The segment with the highest peak in each phase."""
    by_phase: dict[Phase, list[Composition]] = {phase: [] for phase in PHASES}
    for segment, composition in segments.items():
        by_phase[_phase_of(segment)].append(composition)
    return Peaks({phase: max(found, key=Counter.total) for phase, found in by_phase.items()}, largest)


def _phase_of(segment: str) -> Phase:
    """The phase that a segment of a Simulation belongs to."""
    return next(phase for phase in PHASES if segment.split("/")[0] == phase)
