"""Timeline of the memory in use, from the start of a run to its end, for a plot."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from core.job import JobSpec
from core.memory.extrapolate import extrapolate_peaks
from core.memory.program import LayerKind, Program, program_of
from core.memory.step import PHASES, MemoryPhase, Simulation, sections
from core.models import Gpu, ModelShape

MAX_POINTS = 400
MAX_LAYERS = 128
"""A deeper model is drawn from shallow ones: its picture would take minutes and show no more."""
SHALLOW_LAYERS = 24
LAYER = re.compile(r", layer (\d+)")
Layers = tuple[LayerKind, ...]


class TimelinePoint(NamedTuple):
    """Highest memory use within one stretch of time."""

    phase: MemoryPhase
    label: str
    """Part of the program that runs, such as "backward, layer 3"."""
    num_bytes: int
    """Allocated bytes."""


def timeline(
    job: JobSpec, shape: ModelShape, gpu: Gpu, longest_row_tokens: int | None = None
) -> tuple[TimelinePoint, ...]:
    """Return the memory of load, one step, evaluation and save in at most MAX_POINTS points.

    Simulates every layer of all but very deep models. Its highest point is the allocated peak of
    `estimate` with the same arguments. Raises SpecError as `estimate` does.
    """
    program = program_of(job, shape, gpu, longest_row_tokens)
    kinds = program.layer_kinds()
    if len(kinds) > MAX_LAYERS:
        return _extrapolated(program, sections(kinds))
    points: list[TimelinePoint] = []
    moments = [moment for stretch in _stretches(program, kinds) for moment in stretch]
    moments_per_point = max(1, -(-len(moments) // MAX_POINTS))
    for index, (label, live_bytes) in enumerate(moments):
        if index % moments_per_point == 0:
            points.append(_point(label, live_bytes))
        elif live_bytes > points[-1].num_bytes:
            points[-1] = _point(label, live_bytes)
    return tuple(points)


def _point(label: str, live_bytes: int) -> TimelinePoint:
    """Return a point: "forward, layer 3" is part of forward, "generation/prompt" of generation."""
    (phase,) = (each for each in PHASES if each == label.split(",")[0].split("/")[0])
    return TimelinePoint(phase, label.replace("/", ": "), live_bytes)


def _stretches(program: Program, kinds: Layers) -> Iterator[list[tuple[str, int]]]:
    """Yield (label, live bytes) of each moment, in a list for each stretch between two marks."""
    memory = Simulation(program, kinds).run().memory
    live_bytes = 0
    ends = (*memory.marks, (len(memory.log), ""))
    for (begin, label), (end, _next) in pairwise(ends):
        moments = []
        for entry in memory.log[begin:end]:
            live_bytes += memory.sizes[entry] if entry >= 0 else -memory.sizes[~entry]
            moments.append((label, live_bytes))
        yield moments


# Deep models


def _extrapolated(program: Program, parts: Sequence[Layers]) -> tuple[TimelinePoint, ...]:
    """Return the highest moment of each stretch of a shallow model, raised to the true depth.

    Memory is linear in the number of layers. So simulate once more for each section, with all its
    layers doubled, and add what that adds as often as layers are missing.
    """
    num_layers = sum(map(len, parts))
    shallow = [_sample(part, num_layers) for part in parts]
    base = _peaks(program, shallow)
    heights = [float(num_bytes) for _label, num_bytes in base]
    for number, (part, few) in enumerate(zip(parts, shallow, strict=True)):
        if part == few:
            continue
        deeper = _peaks(program, shallow, doubled=number)
        scale = len(part) / len(few) - 1
        for place, ((_label, low), (_same, high)) in enumerate(zip(base, deeper, strict=True)):
            heights[place] += scale * (high - low)
    names = _layer_numbers(parts, shallow)
    highest = extrapolate_peaks(program).by_phase
    points = []
    for (label, _bytes), height in zip(base, heights, strict=True):
        named = LAYER.sub(lambda found: f", layer {names[int(found[1])]}", label)
        point = _point(named, round(height))
        # the highest moment of a stretch may be another one in the deeper model
        most = highest[point.phase].total() if point.phase in highest else point.num_bytes
        points.append(point._replace(num_bytes=min(point.num_bytes, most)))
    return tuple(points)


def _sample(part: Layers, num_layers: int) -> Layers:
    """Return some layers of a section in its order, each kind as often as its share asks."""
    wanted = max(2, round(SHALLOW_LAYERS * len(part) / num_layers), len(set(part)))
    if wanted >= len(part):
        return part
    chosen: list[LayerKind] = []
    seen: Counter[LayerKind] = Counter()
    taken: Counter[LayerKind] = Counter()
    for index, kind in enumerate(part):
        seen[kind] += 1
        if (index + 1) * wanted // len(part) > len(chosen):
            missing = {each: seen[each] * wanted / len(part) - taken[each] for each in seen}
            best = max(missing, key=lambda each: missing[each])
            chosen.append(best)
            taken[best] += 1
    return tuple(chosen)


def _peaks(
    program: Program, parts: Sequence[Layers], doubled: int | None = None
) -> list[tuple[str, int]]:
    """Return (label, highest bytes) of each stretch; of two doubled layers that of the second."""
    kinds: list[LayerKind] = []
    skipped = set()
    for number, part in enumerate(parts):
        for kind in part:
            if number == doubled:
                kinds.append(kind)
                skipped.add(len(kinds))
            kinds.append(kind)
    peaks = []
    for moments in _stretches(program, tuple(kinds)):
        if not moments:
            continue
        label = moments[0][0]
        found = LAYER.search(label)
        if found is None or int(found[1]) not in skipped:
            peaks.append((label, max(num_bytes for _label, num_bytes in moments)))
    return peaks


def _layer_numbers(parts: Sequence[Layers], shallow: Sequence[Layers]) -> dict[int, int]:
    """Return which layer of the whole model each layer of the shallow one stands for, from 1."""
    names: dict[int, int] = {}
    before = 0
    for part, few in zip(parts, shallow, strict=True):
        for index in range(1, len(few) + 1):
            names[len(names) + 1] = before + index * len(part) // len(few)
        before += len(part)
    return names
