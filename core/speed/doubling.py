"""Doubling: up to how many devices twice as many pay, by the forecast."""

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed.forecast import predict_speed
from core.speed.rows import RowStatistics

MIN_GAIN = 1.5
"""Speed of twice as many devices, as a multiple, below which they do not pay."""


def pays_up_to(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None, most_devices: int
) -> int | None:
    """Return the number of devices up to which twice as many pay.

    None if `most_devices` pay, or nothing is known of the speed.
    """
    count = 1
    while 2 * count <= most_devices:
        speeds = []
        for number in (count, 2 * count):
            changed = job.model_copy(update={"num_devices": number})
            speeds.append(predict_speed(changed, shape, gpu, rows))
        fewer, more = speeds
        if fewer is None or more is None:
            return None
        if more.tokens_per_second < MIN_GAIN * fewer.tokens_per_second:
            return count
        count *= 2
    return None
