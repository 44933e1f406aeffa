"""The GPUs as NVML shows them. Never CUDA: asking takes no GPU memory. What a driver does not tell has a default."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

MHZ = 10**6
FLOPS_PER_CORE_PER_CYCLE = {
    (7, 0): 16,
    (7, 5): 8,
    (8, 0): 32,
    (8, 6): 4,
    (8, 9): 4,
    (9, 0): 32,
    (10, 0): 64,
    (12, 0): 4,
}
"""Compute capability -> dense 16-bit tensor FLOP per CUDA core and cycle with FP32 accumulate: the peak in NVIDIA's
white papers / (cores x boost clock). Where a capability has GeForce and professional cards, the GeForce's."""
PLAIN_FLOPS_PER_CORE_PER_CYCLE = 2
"""One fused multiply-add: a card without tensor cores, or one that the table does not know."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    """Its program; empty where the driver does not say."""
    used_bytes: int | None
    """None where the driver does not say, as on Windows."""


@dataclass(frozen=True)
class DeviceReading:
    """A GPU as NVML shows it now."""

    index: int
    name: str
    uuid: str
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    driver: str
    memory_bandwidth_bytes_per_second: float
    """Bus width x memory clock x 2 (double data rate); 0 if the driver does not say."""
    flops: float
    """Rough: cores x highest clock x FLOPS_PER_CORE_PER_CYCLE; 0 if the driver does not say."""
    processes: tuple[GpuProcess, ...]

    @property
    def short_name(self) -> str:
        """The name without its maker: RTX 4090."""
        return re.sub(r"\b(NVIDIA|GeForce|Tesla)\s+", "", self.name)


def read_gpus(nvml: Any) -> tuple[DeviceReading, ...]:
    """The GPUs that a started NVML module shows, in its order; one that does not even tell its memory is left out."""
    readings = (ask(None, _read_gpu, nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    return tuple(reading for reading in readings if reading)


def visible_gpus(
    readings: tuple[DeviceReading, ...], visible: str | None
) -> tuple[DeviceReading, ...]:
    """Those that a program sees, as CUDA reads CUDA_VISIBLE_DEVICES.

    Indices or beginnings of UUIDs, up to the first that fits no card.
    """
    if visible is None:
        return readings
    chosen: list[DeviceReading] = []
    for word in map(str.strip, visible.split(",")):
        fits = [
            gpu
            for gpu in readings
            if word == str(gpu.index) or (word[:4] == "GPU-" and gpu.uuid.startswith(word))
        ]
        if len(fits) != 1:
            break
        chosen += fits
    return tuple(chosen)


def _read_gpu(nvml: Any, index: int) -> DeviceReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = ask((0, 0), nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return DeviceReading(
        index=index,
        name=ask("NVIDIA GPU", nvml.nvmlDeviceGetName, handle),
        uuid=ask("", nvml.nvmlDeviceGetUUID, handle),
        capacity_bytes=int(memory.total),
        used_bytes=int(memory.used),
        free_bytes=int(memory.free),
        compute_capability=(major, minor),
        driver=ask("", nvml.nvmlSystemGetDriverVersion),
        memory_bandwidth_bytes_per_second=ask(0.0, _memory_bandwidth, nvml, handle),
        flops=ask(0.0, _flops, nvml, handle, (major, minor)),
        processes=ask((), _processes, nvml, handle),
    )


def _memory_bandwidth(nvml: Any, handle: Any) -> float:
    """Bytes per second: two transfers per cycle on each of the bus's bits."""
    hertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * MHZ
    return float(2 * hertz * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8)


def _flops(nvml: Any, handle: Any, capability: tuple[int, int]) -> float:
    hertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * MHZ
    per_cycle = FLOPS_PER_CORE_PER_CYCLE.get(capability, PLAIN_FLOPS_PER_CORE_PER_CYCLE)
    return float(per_cycle * hertz * nvml.nvmlDeviceGetNumGpuCores(handle))


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    """Largest first. NVML's own names: the pids are the host's, which in a container mean other processes."""
    found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    processes = (
        GpuProcess(
            process.pid, ask("", nvml.nvmlSystemGetProcessName, process.pid), process.usedGpuMemory
        )
        for process in found
    )
    return tuple(sorted(processes, key=lambda process: -(process.used_bytes or 0)))


def ask(default: T, question: Callable[..., T], *arguments: object) -> T:
    """The answer, or the default: not every driver and system answers every question."""
    try:
        return question(*arguments)
    except Exception:
        return default
