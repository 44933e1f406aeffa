"""Peaks of a deep model from shallow simulations: memory is linear in the number of layers.

Exact as long as peaks are compared at the same position: near the first and near the last layer.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from core.memory.components import Component
from core.memory.program import LayerKind, Program
from core.memory.simulator import MAX_TENSORS_IN_FLIGHT
from core.memory.step import PHASES, MemoryPhase, Simulation, sections

Composition = Counter[Component]
"""Bytes by component."""
Layers = tuple[LayerKind, ...]
Ends = tuple[Layers, Layers]
"""First and last layers of a section that are simulated."""


@dataclass(frozen=True)
class SimulatedPeaks:
    """Peak memory of one simulated run."""

    by_phase: Mapping[MemoryPhase, Composition]
    """Bytes alive at the peak of each phase."""
    largest_activation_bytes: int


# Cached by program, not by job: most edits of a job, such as its learning rate, do not change it.
@lru_cache(maxsize=256)
def extrapolate_peaks(program: Program) -> SimulatedPeaks:
    """Return the peaks of each phase of a program's run.

    The peak of a scope grows by the same bytes with every layer of a kind. So simulate a shallow
    model with every kind at both ends, simulate it once more for each kind with one layer of it
    added in the middle, and extrapolate. Frozen and trained sections are extrapolated separately.
    A model that mixes kinds has them closer together at its ends than in reality, so that the
    result may be a few layers' inputs too high.
    """
    layers = sections(program.layer_kinds())
    num_ends = max(2, *(len(set(section)) for section in layers))
    ends = [_ends(program, section, num_ends) for section in layers]
    base, largest_activation_bytes = _simulate(program, ends, num_ends)
    total = {scope: composition.copy() for scope, composition in base.items()}
    for number, section in enumerate(layers):
        first, last = ends[number]
        for kind in dict.fromkeys(section):
            num_more = section.count(kind) - (first + last).count(kind)
            if num_more == 0:
                continue
            one_more = [*ends]
            one_more[number] = ((*first, kind), last)
            deeper, _ = _simulate(program, one_more, num_ends)
            for scope, composition in base.items():
                for component, num_bytes in deeper[scope].items():
                    growth = num_bytes - composition[component]
                    total[scope][component] += num_more * growth
    return SimulatedPeaks(_highest_by_phase(total), largest_activation_bytes)


def _ends(program: Program, section: Layers, num_ends: int) -> Ends:
    """Return the layers to simulate for a section: every kind at both ends, or all if they are few.

    With offloading, inputs of several checkpointed layers are in flight to main memory at once;
    only beyond these does another layer add nothing. Mixed kinds save more than that each.
    """
    first = tuple(dict.fromkeys(section))
    last = tuple(dict.fromkeys(reversed(section)))[::-1]
    num_first = num_ends
    if program.offloads_activations and len(first) == 1:
        num_first += MAX_TENSORS_IN_FLIGHT
    if len(section) <= num_first + num_ends + len(first):
        return section, ()
    repeats = -(-num_first // len(first))
    return (first * repeats)[:num_first], (last * repeats)[-num_ends:]


def _simulate(
    program: Program, ends: list[Ends], num_ends: int
) -> tuple[Mapping[str, Composition], int]:
    """Return the composition at the peak of each scope, and the largest activation in bytes."""
    layers = tuple(kind for first, last in ends for kind in (*first, *last))
    memory = Simulation(program, layers, num_ends).run().memory
    pairs = zip(memory.sizes, memory.components, strict=True)
    largest = max(size for size, component in pairs if component == "activations")
    return memory.bytes_at_peaks(), largest


def _highest_by_phase(scopes: Mapping[str, Composition]) -> Mapping[MemoryPhase, Composition]:
    """Return the composition of the scope with the highest peak in each phase."""
    by_phase: dict[MemoryPhase, Composition] = {}
    for phase in PHASES:
        inside = [peak for scope, peak in scopes.items() if scope.split("/")[0] == phase]
        if inside:
            by_phase[phase] = max(inside, key=Counter.total)
    return by_phase
