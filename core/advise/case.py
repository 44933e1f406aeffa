"""Case: a job with the card and the data that it is for, and the ways to see the same rows in an optimizer step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from core.job import JobSpec, SpecError
from core.memory import MemoryEstimate, estimate
from core.models import Gpu, ModelShape
from core.speed import RowStatistics, Speed, predict_speed
from core.training.contract.stages import STAGES

Change = Mapping[str, object]
"""JobSpec field -> new value."""

LARGEST_BATCH = 4096  # JobSpec allows no more
ANY_BATCH = range(1, LARGEST_BATCH + 1)
SHORT_ROWS = 0.7
"""Rows that fill less than this share of max_length are worth joining; others leave hardly any padding."""
MOST_OFF = 1 / 3
"""How far a step of joined rows may be from the number of rows that a step has, as a share: that of one and a half
joined rows from one or two."""


class Harm(IntEnum):
    """What a change does to the result of the training."""

    NONE = 0  # the same but for rounding
    SLIGHT = 1  # numbers are stored less exactly, or a step sees a few rows more or less
    REAL = 2  # it is another training


def estimate_on(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None
) -> MemoryEstimate:
    """The memory of a job, for rows that are as long as they are known to be. Raises SpecError."""
    if rows is None or rows.max_tokens is None:
        return estimate(job, shape, gpu)
    return estimate(job, shape, gpu, rows.max_tokens, mean_row_tokens=rows.mean_tokens)


@dataclass(frozen=True)
class Case:
    """A job, with what is known about where and on what it runs."""

    job: JobSpec
    shape: ModelShape
    gpu: Gpu
    rows: RowStatistics | None = None

    @property
    def memory(self) -> MemoryEstimate:
        """Its estimate. Raises SpecError for a job that cannot run on this model."""
        return estimate_on(self.job, self.shape, self.gpu, self.rows)

    @property
    def fits(self) -> bool:
        """True if it fits with room for what the estimate may be off."""
        return self.memory.verdict == "fits"

    @property
    def speed(self) -> Speed | None:
        """The forecast; None if there is none for this card."""
        return predict_speed(self.job, self.shape, self.gpu, self.rows)

    @property
    def seconds(self) -> float | None:
        """Of the whole job by forecast, or of one optimizer step if the number of rows is unknown; None if neither."""
        speed = self.speed
        if speed is None or speed.hours is None:
            return speed.seconds_per_step if speed else None
        return 3600 * speed.hours

    @property
    def is_on_cpu(self) -> bool:
        """True for the "card" that stands for no card at all."""
        return self.gpu.compute_capability == (0, 0)

    @property
    def can_offload(self) -> bool:
        """True if activations can wait in main memory: not every trainer does it, and none without CUDA."""
        return "activation_offloading" in STAGES[self.job.stage].fields and not self.is_on_cpu

    @property
    def can_pack(self) -> bool:
        """True if its rows are so short that joining them pays."""
        mean = self.rows.mean_tokens if self.rows else None
        return bool(
            mean
            and STAGES[self.job.stage].supports_packing
            and mean < SHORT_ROWS * self.job.max_length
        )

    def changed(self, change: Change) -> "Case | None":
        """The case after a change; None if its fields contradict each other then."""
        try:
            return replace(self, job=JobSpec.parse({**self.job.model_dump(), **change}))
        except SpecError:
            return None


def batch_splits(job: JobSpec, rows_per_step: int, sizes: range = ANY_BATCH) -> tuple[Change, ...]:
    """Ways to see so many rows in an optimizer step, most at once first, with a batch of one of these sizes."""
    least = STAGES[job.stage].min_batch_size
    return tuple(
        {"per_device_train_batch_size": size, "gradient_accumulation_steps": rows_per_step // size}
        for size in reversed(sizes)
        if size >= least and rows_per_step % size == 0
    )


def packed_splits(case: Case, sizes: range = ANY_BATCH) -> tuple[Change, ...]:
    """Ways to join short rows and still see about as many in an optimizer step, most at once first; none where joining
    does not pay, or one joined row already holds too many."""
    if case.job.packing or not case.can_pack or not case.rows or not case.rows.mean_tokens:
        return ()
    joined = case.job.effective_batch_size * case.rows.mean_tokens / case.job.max_length
    if abs(round(joined) / joined - 1) > MOST_OFF:
        return ()
    return tuple(
        {"packing": True, **split} for split in batch_splits(case.job, round(joined), sizes)
    )
