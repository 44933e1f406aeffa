"""Timeline of the memory in use, from the start of a run to its end, for a plot."""

from typing import NamedTuple

from core.job import JobSpec
from core.memory.program import program_of
from core.memory.step import Simulation
from core.models import Gpu, ModelShape

MAX_POINTS = 400


class TimelinePoint(NamedTuple):
    """Highest memory use within one stretch of time."""

    phase: str
    label: str
    """Part of the program that runs, such as "backward, layer 3"."""
    num_bytes: int
    """Allocated bytes."""


def timeline(job: JobSpec, shape: ModelShape, gpu: Gpu) -> tuple[TimelinePoint, ...]:
    """Return the memory of load, one step, evaluation and save in at most MAX_POINTS points.

    Simulates every layer, so that a deep model takes longer than its estimate. Raises SpecError as
    `estimate` does.
    """
    program = program_of(job, shape, gpu)
    memory = Simulation(program, program.layer_kinds()).run().memory
    labels = dict(memory.marks)  # the last mark at a position counts
    points: list[TimelinePoint] = []
    live_bytes = 0
    label = ""
    entries_per_point = max(1, -(-len(memory.log) // MAX_POINTS))
    for index, entry in enumerate(memory.log):
        label = labels.get(index, label)
        live_bytes += memory.sizes[entry] if entry >= 0 else -memory.sizes[~entry]
        if index % entries_per_point == 0:
            points.append(_point(label, live_bytes))
        elif live_bytes > points[-1].num_bytes:
            points[-1] = _point(label, live_bytes)
    return tuple(points)


def _point(label: str, live_bytes: int) -> TimelinePoint:
    """Return a point: "forward, layer 3" is part of forward, "generation/prompt" of generation."""
    phase = label.split(",")[0].split("/")[0]
    return TimelinePoint(phase, label.replace("/", ": "), live_bytes)
