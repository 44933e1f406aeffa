"""The forecast of a job's speed, before it starts: a roofline of matrix math, memory traffic and the host.

Forecasts, with a wide band, the steps alone: not loading, evaluating, saving or compiling.
"""

from dataclasses import dataclass
from typing import Literal

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed.generation import generation_seconds
from core.speed.kernels import attention_kernel
from core.speed.passes import FORWARD_ONLY, passes_of, reference_sequences, trained_sequences
from core.speed.rows import (
    RowStatistics,
    count_steps,
    micro_batch,
    num_training_rows,
    prompt_tokens,
)
from core.speed.work import Work, host_seconds, update_bytes, work_of

Bound = Literal["matrix math", "memory traffic", "the processor feeding the GPU", "drawing answers"]

BAND = 0.25
"""How far off a forecast may be, as a share: the published rates in tests/test_speed.py all lie within it."""


@dataclass(frozen=True)
class Speed:
    """The forecast for one job on one card."""

    tokens_per_second: float
    """Tokens of the data, padding not counted."""
    seconds_per_step: float
    """Of one optimizer step."""
    num_steps: int | None
    """Optimizer steps of the whole job; None if the number of rows is unknown."""
    hours: float | None
    usd: float | None
    """None if the price or the number of rows is unknown."""
    bound_by: Bound
    """What takes most of a step."""
    low_factor: float = 1 - BAND
    high_factor: float = 1 + BAND
    """The true rate should lie between these times the forecast."""
    num_measured: int = 0
    """Past runs that corrected it."""

    @property
    def certainty(self) -> str:
        """How far to trust it, in words: `± 25 %`, or `± 6 %, from 3 runs like this one`."""
        band = f"± {100 * (self.high_factor - 1):.0f} %"
        if not self.num_measured:
            return band
        return f"{band}, from {self.num_measured} run{'s' * (self.num_measured != 1)} like this one"

    def to_json(self) -> dict[str, float | None]:
        """The object `speed` that `estimate --json` prints."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "seconds_per_step": self.seconds_per_step,
            "hours": self.hours,
            "usd": self.usd,
        }


def predict_speed(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    host_factor: float = 1.0,
) -> Speed | None:
    """How fast this job trains on this card; None for a CPU and for a card whose rates are unknown.

    Every row counts as max_length tokens if `rows` does not tell their mean. A processor that launches kernels more
    slowly than a usual one has a `host_factor` above 1.
    """
    if (
        gpu.compute_capability == (0, 0)
        or not gpu.flops
        or not gpu.memory_bandwidth_bytes_per_second
    ):
        return None
    batch, passes = (
        micro_batch(job, rows, attention_kernel(job, shape, gpu).sees_documents),
        passes_of(job, shape),
    )
    work, on_host = (
        work_of(job, shape, gpu, batch, passes),
        host_factor * host_seconds(job, shape, passes),
    )
    update_seconds = update_bytes(job, shape, gpu) / gpu.memory_bandwidth_bytes_per_second
    micro_seconds = (
        max(work.total_seconds, on_host) + update_seconds / job.gradient_accumulation_steps
    )
    answer_seconds = generation_seconds(job, shape, gpu, prompt_tokens(job, rows))
    step_seconds = job.gradient_accumulation_steps * micro_seconds + answer_seconds
    num_steps = count_steps(job, rows)
    hours = None
    if num_steps is not None:
        hours = (
            num_steps * step_seconds + _reference_seconds(job, shape, gpu, rows, host_factor)
        ) / 3600
    return Speed(
        tokens_per_second=job.gradient_accumulation_steps * batch.num_data_tokens / step_seconds,
        seconds_per_step=step_seconds,
        num_steps=num_steps,
        hours=hours,
        usd=hours * gpu.usd_per_hour
        if hours is not None and gpu.usd_per_hour is not None
        else None,
        bound_by="drawing answers"
        if answer_seconds > step_seconds / 2
        else _bound(work, on_host, micro_seconds),
    )


def _reference_seconds(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None, host_factor: float
) -> float:
    """Seconds in which the reference model reads all rows once, if it is asked before the training."""
    if not job.precompute_ref_log_probs or rows is None:
        return 0.0
    batch = micro_batch(job, rows, attention_kernel(job, shape, gpu).sees_documents)
    num_sequences = num_training_rows(job, rows) * reference_sequences(job)
    num_batches = num_sequences / (job.per_device_train_batch_size * trained_sequences(job))
    on_host = host_factor * host_seconds(job, shape, FORWARD_ONLY)
    return num_batches * max(work_of(job, shape, gpu, batch, FORWARD_ONLY).total_seconds, on_host)


def _bound(work: Work, on_host: float, micro_seconds: float) -> Bound:
    """What takes most: what is neither matrix math nor waiting for the host is traffic, the optimizer's included."""
    if on_host > work.total_seconds:
        return "the processor feeding the GPU"
    return "matrix math" if work.matrix_seconds >= micro_seconds / 2 else "memory traffic"
