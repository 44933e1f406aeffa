"""Largest batch that fits: for one job, and for a table of models, methods and cards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from core.advise.case import Case
from core.advise.rough_memory import resident_bytes
from core.advise.search import FUSED_ADAMW
from core.job import JobSpec, SpecError
from core.memory import TIGHT_SHARE
from core.models import Gpu, ModelShape

SURE_SHARE = 0.75
"""One row more does not fit if there is room for less than this share of what a row takes."""
MAX_BATCH = 4096
"""Largest batch that JobSpec allows."""
USUAL_GPUS = (
    "rtx-3060",
    "rtx-4060-ti-16gb",
    "t4",
    "rtx-4090",
    "rtx-5090",
    "l40s",
    "a100-80gb",
    "h200",
)
"""GPU presets of the table "What fits where"."""

GPUS_TOGETHER = ("rtx-4090", "l40s", "a100-80gb")
USUAL_COUNTS = (2, 4, 8)
"""GPU presets and numbers of them in its part about several GPUs."""


@lru_cache(maxsize=4096)
def largest_batch(job: JobSpec, shape: ModelShape, gpu: Gpu) -> int | None:
    """Return the largest per_device_train_batch_size that fits; None if one row does not.

    Memory is nearly linear in the batch, so a line through the last two sizes says which to try
    next: a handful of estimates instead of a dozen. None of them is needed for a model whose
    weights and optimizer states alone are too large. Raises SpecError for an impossible job.
    """
    if resident_bytes(Case(job, shape, gpu)) > gpu.capacity_bytes:
        return None
    fits, too_large = 0, MAX_BATCH + 1
    size, last_size, last_bytes = 1, 0, 0
    while too_large - fits > 1:
        batch = job.model_copy(update={"per_device_train_batch_size": size})
        memory = Case(batch, shape, gpu).memory
        if memory.verdict == "fits":
            fits = size
        else:
            too_large = size
        bytes_per_row = (memory.total_bytes - last_bytes) / (size - last_size) or 1
        free_bytes = TIGHT_SHARE * gpu.capacity_bytes - memory.total_bytes
        # The peak is the highest of several nearly linear ones, so its slope never falls.
        is_slope_known = 0 < last_size < size
        if is_slope_known and 0 <= free_bytes < SURE_SHARE * bytes_per_row:
            return size
        last_size, last_bytes = size, memory.total_bytes
        guess = size + int(free_bytes // bytes_per_row)
        size = min(max(guess, fits + 1), too_large - 1)
    return fits or None


@dataclass(frozen=True)
class Cell:
    """One cell of the table "What fits where"."""

    model: str
    method: str
    gpu: str
    batch: int | None
    """Largest per_device_train_batch_size that fits; None if one row does not."""
    num_devices: int = 1
    """GPUs that the model is divided among."""


def what_fits(
    shapes: Iterable[tuple[str, ModelShape]],
    methods: Iterable[str],
    gpus: Sequence[Gpu],
    max_length: int = 2048,
    counts: Sequence[int] = (1,),
) -> tuple[Cell, ...]:
    """Return the largest batch of rows of `max_length` tokens, with checkpointing and defaults.

    With several GPUs the model is divided among them; a method without such a cell cannot be.

    `shapes`: (name of the model, its shape). Raises SpecError if a model has fewer positions.
    """
    jobs = [
        job
        for count, method in product(counts, methods)
        if (job := _job_on(count, {"method": method, "max_length": max_length}))
    ]
    return tuple(
        Cell(name, job.method, gpu.id, largest_batch(job, shape, gpu), job.num_devices)
        for (name, shape), job, gpu in product(shapes, jobs, gpus)
    )


def _job_on(num_devices: int, fields: dict[str, object]) -> JobSpec | None:
    """Return a job whose model is divided among devices; None if its method cannot be."""
    if num_devices == 1:
        return JobSpec.parse(fields)
    division = {"num_devices": num_devices, "parallelism": "fsdp", "optim": FUSED_ADAMW}
    try:
        return JobSpec.parse({**fields, **division})
    except SpecError:
        return None
