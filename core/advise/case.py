"""Case: a job with its card and data, its estimate and its forecast. Changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from types import MappingProxyType

from core.job import JobSpec, SpecError
from core.memory import MemoryEstimate, PastRun, estimate, refine
from core.models import Gpu, ModelShape
from core.speed import RowStatistics, Speed, predict_speed

FieldValues = Mapping[str, object]
"""JobSpec field -> value."""

COMPILE_SECONDS: Mapping[int, float] = MappingProxyType({16: 100.0, 4: 200.0})
"""Bits of the base -> cost of compiling the layers. Cold starts of 25 s (16 bits) to 100 s (4 bits)
are published (Unsloth) for gains of 14 to 19 %; with a margin of two to four, a run earns it back
from 10 and 20 minutes on. Other bases are not compiled."""


class Harm(IntEnum):
    """Effect of a change on the result of the training."""

    NONE = 0  # the same but for rounding
    SLIGHT = 1  # numbers are stored less exactly, or a step sees a few rows more or less
    REAL = 2  # a different training


@dataclass(frozen=True)
class Case:
    """Job with the card and the data it is for."""

    job: JobSpec
    shape: ModelShape
    gpu: Gpu
    rows: RowStatistics | None = None
    past: tuple[PastRun, ...] = ()
    """Runs of this machine that correct the estimate."""
    most_devices: int = 1
    """Number of devices that could train the job together."""

    @property
    def memory(self) -> MemoryEstimate:
        """Return the estimate, corrected by past runs.

        Raises SpecError for a job that cannot run on this model.
        """
        return refine(self._simulated, self.past) if self.past else self._simulated

    @property
    def _simulated(self) -> MemoryEstimate:
        if self.rows is None or self.rows.max_tokens is None:
            return estimate(self.job, self.shape, self.gpu)
        mean = self.rows.mean_tokens
        return estimate(self.job, self.shape, self.gpu, self.rows.max_tokens, mean_row_tokens=mean)

    @property
    def fits(self) -> bool:
        """Return True if the job fits with a margin for the error of the estimate."""
        return self.memory.verdict == "fits"

    @property
    def speed(self) -> Speed | None:
        """Return the forecast; None on a CPU or a card of unknown speed."""
        return predict_speed(self.job, self.shape, self.gpu, self.rows)

    @property
    def seconds(self) -> float | None:
        """Return the forecast time of the whole job, or of one step if its length is unknown."""
        speed = self.speed
        if speed is None:
            return None
        if speed.hours is None:
            return speed.seconds_per_step
        return 3600 * speed.hours + self.compile_seconds

    @property
    def compile_seconds(self) -> float:
        """Return the seconds that compiling takes; 0 if the layers are not compiled."""
        if not self.job.torch_compile:
            return 0.0
        return COMPILE_SECONDS.get(self.job.base_bits, 0.0)

    def assumed_speed(self, host_factor: float = 1.0) -> Speed:
        """Return the forecast, on a usual card if this one's speed is unknown: for comparisons."""
        speed = predict_speed(self.job, self.shape, self.gpu, self.rows, host_factor)
        if speed is None:
            usual = replace(self.gpu, flops=1e14, memory_bandwidth_bytes_per_second=1e12)
            if self.is_on_cpu:
                usual = replace(usual, compute_capability=(8, 0))
            speed = predict_speed(self.job, self.shape, usual, self.rows, host_factor)
        assert speed is not None, "a usual card has a forecast"
        return speed

    def seconds_per_token(self, host_factor: float = 1.0) -> float:
        """Return the seconds of the whole job per token of its data, compiling included."""
        speed = self.assumed_speed(host_factor)
        if speed.hours is None or not speed.num_steps:
            return 1 / speed.tokens_per_second
        tokens = speed.num_steps * speed.seconds_per_step * speed.tokens_per_second
        return (3600 * speed.hours + self.compile_seconds) / tokens

    @property
    def is_on_cpu(self) -> bool:
        """Return True if the "card" stands for the processor."""
        return self.gpu.compute_capability == (0, 0)

    def changed(self, values: FieldValues) -> "Case | None":
        """Return the case with other field values; None if the job refuses them."""
        try:
            return replace(self, job=JobSpec.parse({**self.job.model_dump(), **values}))
        except SpecError:
            return None
