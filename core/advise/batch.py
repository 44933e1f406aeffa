"""The largest batch that fits: for one job, and for every model, method and card of a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from core.advise.case import LARGEST_BATCH
from core.job import JobSpec
from core.memory import TIGHT_SHARE, estimate
from core.models import Gpu, ModelPreset, ModelShape


@lru_cache(maxsize=4096)
def largest_batch(job: JobSpec, shape: ModelShape, gpu: Gpu) -> int | None:
    """The largest per_device_train_batch_size with which this job fits; None if even one row does not.

    Memory grows almost evenly with the batch, so a line through the last two sizes tells which to try next: a handful
    of estimates, where halving the range takes a dozen. Raises SpecError for a job that cannot run on this model.
    """
    fits, too_large = 0, LARGEST_BATCH + 1
    size, before = 1, (0, 0)
    while too_large - fits > 1:
        memory = estimate(job.model_copy(update={"per_device_train_batch_size": size}), shape, gpu)
        fits, too_large = (size, too_large) if memory.verdict == "fits" else (fits, size)
        here = (size, memory.total_bytes)
        bytes_per_row = (here[1] - before[1]) / (here[0] - before[0]) or 1
        guess = size + int((TIGHT_SHARE * gpu.capacity_bytes - memory.total_bytes) // bytes_per_row)
        before, size = here, min(max(guess, fits + 1), too_large - 1)
    return fits or None


@dataclass(frozen=True)
class Cell:
    """One cell of the table "What fits where"."""

    model: str
    method: str
    gpu: str
    batch: int | None
    """The largest per_device_train_batch_size that fits; None if not even one row does."""


def what_fits(
    models: Iterable[ModelPreset],
    methods: Sequence[str],
    gpus: Sequence[Gpu],
    max_length: int = 2048,
) -> tuple[Cell, ...]:
    """The largest batch of rows of `max_length` tokens, with checkpointing and otherwise default settings.

    Raises SpecError if a model has fewer positions than that.
    """
    jobs = [JobSpec.parse({"method": method, "max_length": max_length}) for method in methods]
    return tuple(
        Cell(model.id, job.method, gpu.id, largest_batch(job, model.shape, gpu))
        for model, job, gpu in product(models, jobs, gpus)
    )
