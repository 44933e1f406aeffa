"""GPUs as NVML reports them. Never CUDA, which would take GPU memory.

A fact that the driver does not report has a default.
"""

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
"""Compute capability -> dense 16-bit tensor FLOP per CUDA core and cycle with FP32 accumulate.

This is the peak in NVIDIA's white papers / (cores x boost clock). Where a capability has GeForce
and professional cards, it is that of the GeForce."""
SIMPLE_FLOPS_PER_CORE_PER_CYCLE = 2
"""One fused multiply-add: for cards without tensor cores and for unknown capabilities."""


@dataclass(frozen=True)
class GpuProcess:
    """Process that holds memory of a GPU."""

    pid: int
    name: str
    """Program; "" if the driver does not report it."""
    used_bytes: int | None
    """None if the driver does not report it, as on Windows."""


@dataclass(frozen=True)
class DeviceReading:
    """State of a GPU at one moment, as NVML reports it."""

    index: int
    name: str
    uuid: str
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    driver: str
    memory_bandwidth_bytes_per_second: float
    """Bus width x memory clock x 2 (double data rate); 0 if the driver does not report it."""
    flops: float
    """Rough: cores x highest clock x FLOPS_PER_CORE_PER_CYCLE; 0 if not reported."""
    processes: tuple[GpuProcess, ...]

    @property
    def short_name(self) -> str:
        """Name without its maker: RTX 4090."""
        return re.sub(r"\b(NVIDIA|GeForce|Tesla)\s+", "", self.name)


def read_gpus(nvml: Any) -> tuple[DeviceReading, ...]:
    """Return the GPUs that a started NVML module reports, in its order, without broken ones."""
    readings = (ask(None, _read_gpu, nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    return tuple(reading for reading in readings if reading)


def visible_gpus(
    readings: tuple[DeviceReading, ...], visible: str | None
) -> tuple[DeviceReading, ...]:
    """Return the GPUs that CUDA would see with this value of CUDA_VISIBLE_DEVICES.

    It lists indices or beginnings of UUIDs. CUDA stops at the first that matches no GPU.
    """
    if visible is None:
        return readings
    chosen: list[DeviceReading] = []
    for word in map(str.strip, visible.split(",")):
        matches = [gpu for gpu in readings if _is_named(gpu, word)]
        if len(matches) != 1:
            break
        chosen += matches
    return tuple(chosen)


def _is_named(gpu: DeviceReading, word: str) -> bool:
    if word.startswith("GPU-"):
        return gpu.uuid.startswith(word)
    return word == str(gpu.index)


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
    """Return bytes per second: two transfers per cycle on each bit of the bus."""
    hertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * MHZ
    return float(2 * hertz * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8)


def _flops(nvml: Any, handle: Any, capability: tuple[int, int]) -> float:
    hertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * MHZ
    per_cycle = FLOPS_PER_CORE_PER_CYCLE.get(capability, SIMPLE_FLOPS_PER_CORE_PER_CYCLE)
    return float(per_cycle * hertz * nvml.nvmlDeviceGetNumGpuCores(handle))


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    """Return the processes on a GPU, the largest first.

    NVML knows their names: its pids are those of the host, which mean others in a container.
    """
    processes = []
    for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        name = ask("", nvml.nvmlSystemGetProcessName, process.pid)
        processes.append(GpuProcess(process.pid, name, process.usedGpuMemory))
    return tuple(sorted(processes, key=lambda process: -(process.used_bytes or 0)))


def ask(default: T, question: Callable[..., T], *arguments: object) -> T:
    """Return the answer, or the default where a driver or a system cannot answer."""
    try:
        return question(*arguments)
    except Exception:
        return default
