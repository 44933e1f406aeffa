"""Forecast of a job's speed before it starts: a roofline of matrix math, memory traffic and the
host.

Covers the optimizer steps alone: never loading, evaluating, saving or compiling.
"""

from dataclasses import dataclass

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
from core.speed.several_devices import talk
from core.speed.work import gpu_seconds, host_seconds, optimizer_bytes

BAND = 0.25
"""Share by which a forecast may be wrong; see tests/speed/test_published_rates.py."""


@dataclass(frozen=True)
class Speed:
    """Forecast for one job on one card."""

    tokens_per_second: float
    """Tokens of the data, without padding."""
    seconds_per_step: float
    """Per optimizer step."""
    num_steps: int | None
    """Optimizer steps of the whole job; None if the number of rows is unknown."""
    hours: float | None
    usd: float | None
    """None if the price or the number of rows is unknown."""
    band: float = BAND
    """Share by which the forecast may be wrong."""
    num_measured: int = 0
    """Past runs that corrected the forecast."""

    @property
    def certainty(self) -> str:
        """Return the range in words: `± 25 %`, or `± 6 %, from 3 runs like this one`."""
        band = f"± {100 * self.band:.0f} %"
        if not self.num_measured:
            return band
        noun = "run" if self.num_measured == 1 else "runs"
        return f"{band}, from {self.num_measured} {noun} like this one"

    def to_json(self) -> dict[str, float | None]:
        """Return the object `speed` that `estimate --json` prints."""
        names = ("tokens_per_second", "seconds_per_step", "hours", "usd")
        return {name: getattr(self, name) for name in names}


def predict_speed(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    host_factor: float = 1.0,
) -> Speed | None:
    """Return how fast this job trains on this card; None on a CPU or a card of unknown speed.

    Every row counts as max_length tokens if `rows` does not give their mean. `host_factor` is above
    1 for a processor that launches kernels more slowly than usual.
    """
    is_on_cpu = gpu.compute_capability == (0, 0)
    if is_on_cpu or not gpu.flops or not gpu.memory_bandwidth_bytes_per_second:
        return None
    batch = micro_batch(job, rows, attention_kernel(job, shape, gpu).sees_documents)
    passes = passes_of(job, shape)
    micro_seconds = max(
        gpu_seconds(job, shape, gpu, batch, passes),
        host_factor * host_seconds(job, shape, passes),
    )
    talking = talk(job, shape, gpu, micro_seconds)
    micro_seconds += talking.per_micro_batch
    step_seconds = job.gradient_accumulation_steps * micro_seconds + talking.per_step
    step_seconds += optimizer_bytes(job, shape, gpu) / gpu.memory_bandwidth_bytes_per_second
    step_seconds += generation_seconds(job, shape, gpu, prompt_tokens(job, rows))
    num_steps = count_steps(job, rows)
    hours = usd = None
    if num_steps is not None:
        seconds = num_steps * step_seconds
        if job.precompute_ref_log_probs and rows is not None:
            seconds += _reference_seconds(job, shape, gpu, rows, host_factor)
        hours = seconds / 3600
    if hours is not None and gpu.usd_per_hour is not None:
        usd = hours * gpu.usd_per_hour * max(1, job.num_devices)
    num_batches = job.gradient_accumulation_steps * max(1, job.num_devices)
    tokens_per_step = num_batches * batch.num_data_tokens
    return Speed(tokens_per_step / step_seconds, step_seconds, num_steps, hours, usd)


def _reference_seconds(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics, host_factor: float
) -> float:
    """Return the seconds in which the reference model reads all rows once before training."""
    batch = micro_batch(job, rows, attention_kernel(job, shape, gpu).sees_documents)
    num_sequences = num_training_rows(job, rows) * reference_sequences(job)
    num_batches = num_sequences / (job.per_device_train_batch_size * trained_sequences(job))
    seconds = max(
        gpu_seconds(job, shape, gpu, batch, FORWARD_ONLY),
        host_factor * host_seconds(job, shape, FORWARD_ONLY),
    )
    return num_batches * seconds
