"""Time that devices which train together spend on talking: a ring over their links.

Source: nccl-tests, doc/PERFORMANCE.md (bytes of a ring). presets/gpus.toml has the links.
"""

from dataclasses import dataclass

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed.work import adapter_parameters, stored_bytes, trained_parameters

REACHED_SHARE = 0.7
"""Share of a link's rate that a ring is assumed to reach. Not measured."""
PCIE_BYTES_PER_SECOND = {7: 16e9, 8: 32e9, 9: 64e9, 10: 64e9, 12: 64e9}
"""Major compute capability -> one direction of 16 lanes: PCIe 3, 4 and 5."""
SLOWEST_PCIE = 16e9
BACKWARD_SHARE = 2 / 3
"""Share of a micro-batch in which DDP can send gradients: its backward pass."""


@dataclass(frozen=True)
class Talk:
    """Seconds that the devices talk, beside what they compute."""

    per_micro_batch: float
    per_step: float


def link_bytes_per_second(gpu: Gpu) -> float:
    """Return the rate at which a card sends to the next."""
    pcie = PCIE_BYTES_PER_SECOND.get(gpu.compute_capability[0], SLOWEST_PCIE)
    return REACHED_SHARE * (gpu.link_bytes_per_second or pcie)


def talk(job: JobSpec, shape: ModelShape, gpu: Gpu, micro_seconds: float) -> Talk:
    """Return what talking adds to micro-batches of this time and to a step.

    FSDP gathers the weights for each pass and divides the gradients, while it computes. DDP adds
    the gradients once a step, during the last backward pass.
    """
    if job.num_devices < 2:
        return Talk(0, 0)
    part = (job.num_devices - 1) / job.num_devices / link_bytes_per_second(gpu)
    width = 4 if job.trains_adapter else stored_bytes(job, gpu)
    trained = adapter_parameters(job, shape) if job.trains_adapter else 0
    gradients = width * (trained or trained_parameters(job, shape))
    if job.parallelism != "fsdp":
        hidden = BACKWARD_SHARE * micro_seconds
        return Talk(0, max(0.0, 2 * gradients * part - hidden))
    weights = stored_bytes(job, gpu) * shape.num_parameters
    seconds = (2 * weights + gradients) * part
    return Talk(max(0.0, seconds - micro_seconds), 0)
