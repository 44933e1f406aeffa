"""The memory in use from the beginning of a run to its end, moment by moment, for a plot."""

from core.job import JobSpec
from core.memory.program.from_job import program_of
from core.memory.step import Simulation
from core.models import Gpu, ModelShape

Moment = tuple[str, str, int]
"""(phase, what happens, bytes allocated)."""


def timeline(
    job: JobSpec, shape: ModelShape, gpu: Gpu, num_moments: int = 400
) -> tuple[Moment, ...]:
    """Load, one step, evaluation and save as at most so many moments, each the highest of its stretch of time.

    Every layer is played, so that a deep model takes longer than its estimate. Raises SpecError as `estimate` does.
    """
    program = program_of(job, shape, gpu)
    heap = Simulation(program, program.layer_kinds()).play().heap
    stretch = max(1, -(-len(heap.log) // num_moments))
    moments: list[Moment] = []
    live_bytes, marks, label = 0, iter(heap.marks), ""
    position, upcoming = next(marks)
    for index, entry in enumerate(heap.log):
        while index >= position:
            label, (position, upcoming) = upcoming, next(marks, (len(heap.log), ""))
        live_bytes += heap.sizes[entry] if entry >= 0 else -heap.sizes[~entry]
        if index % stretch == 0:
            moments.append(_moment(label, live_bytes))
        elif live_bytes > moments[-1][2]:
            moments[-1] = _moment(label, live_bytes)
    return tuple(moments)


def _moment(label: str, live_bytes: int) -> Moment:
    """`forward, layer 3` is a part of `forward`, and `generation/prompt` of `generation`."""
    return label.split(",")[0].split("/")[0], label.replace("/", ": "), live_bytes
