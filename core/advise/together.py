"""Together: how many devices train a job, and how they share its model."""

from core.advise.case import Case
from core.device import cards_together
from core.job import JobSpec, SpecError
from core.memory import PastRun
from core.models import Gpu, ModelShape
from core.speed import RowStatistics


def together(
    job: JobSpec,
    shape: ModelShape | None,
    gpu: Gpu,
    rows: RowStatistics | None,
    past: tuple[PastRun, ...] = (),
) -> JobSpec:
    """Return the job with the number of devices that it takes, and how they share its model.

    auto: a copy of the model on each where that fits, else the model divided among them. Raises
    SpecError if this machine has not as many GPUs.
    """
    num_devices = job.num_devices
    if job.gpu == "local" and gpu.compute_capability != (0, 0):
        num_devices = len(cards_together(job.device, num_devices))
    num_devices = max(1, num_devices)
    job = job.model_copy(update={"num_devices": num_devices})
    if num_devices == 1 or job.parallelism != "auto":
        return job
    copied = job.model_copy(update={"parallelism": "ddp"})
    if shape is None or Case(copied, shape, gpu, rows, past).fits:
        return copied
    try:
        return JobSpec.parse({**job.model_dump(), "parallelism": "fsdp"})
    except SpecError:  # its optimizer or its method cannot be divided
        return copied
