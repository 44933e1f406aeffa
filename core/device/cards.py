"""GPUs as NVML reports them. Never CUDA, which would take GPU memory.

A fact that the driver does not report has a default.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
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
SLICES_OF_A_CARD = 7
"""Compute slices that MIG divides a card into at most."""
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
    """State of a GPU, or of a slice of one (MIG), at one moment, as NVML reports it."""

    index: int
    """As nvidia-smi counts; a slice has that of its card."""
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
    card_uuid: str = ""
    """UUID of the card that it is a slice of; "" for a whole card."""
    place_on_card: str = ""
    """GPU instance and compute instance of a slice: 3/0."""

    @property
    def cuda_name(self) -> str:
        """Name that selects it in CUDA_VISIBLE_DEVICES, with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
        if self.card_uuid:
            return self.uuid
        return str(self.index)

    @property
    def short_name(self) -> str:
        """Name without its maker: RTX 4090."""
        return re.sub(r"\b(NVIDIA|GeForce|Tesla)\s+", "", self.name)


def read_gpus(nvml: Any) -> tuple[DeviceReading, ...]:
    """Return the GPUs that a started NVML module reports, in its order, without broken ones.

    A card that is divided into slices (MIG) stands there as its slices: CUDA can use it only so.
    """
    found: list[DeviceReading] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        card = ask(None, _read_gpu, nvml, index)
        if card:
            slices = ask(None, _read_slices, nvml, card)
            found += (card,) if slices is None else slices
    return tuple(found)


def visible_gpus(
    readings: tuple[DeviceReading, ...], visible: str | None
) -> tuple[DeviceReading, ...]:
    """Return the GPUs that CUDA would see with this value of CUDA_VISIBLE_DEVICES, in its order.

    It lists indices or beginnings of UUIDs. CUDA stops at the first that matches no GPU, and sees
    none at all if one is named twice.
    """
    if visible is None:
        return readings
    chosen: list[DeviceReading] = []
    for word in map(str.strip, visible.split(",")):
        match = _named(readings, word)
        if match is None:
            break
        if match in chosen:
            return ()
        chosen.append(match)
    return tuple(chosen)


def _named(readings: tuple[DeviceReading, ...], word: str) -> DeviceReading | None:
    """Return the only GPU with this name; of a divided card, its first slice."""
    matches = [gpu for gpu in readings if _is_named(gpu, word)]
    if len({gpu.card_uuid or gpu.uuid for gpu in matches}) != 1:
        return None
    names_a_slice = word.startswith("MIG-")
    if names_a_slice and len(matches) > 1:
        return None
    return matches[0]


def _is_named(gpu: DeviceReading, word: str) -> bool:
    if word.startswith("MIG-GPU-"):  # as drivers before R470 name a slice
        return word == f"MIG-{gpu.card_uuid}/{gpu.place_on_card}"
    if word.startswith("MIG-"):
        return bool(gpu.card_uuid) and gpu.uuid.startswith(word)
    if word.startswith("GPU-"):
        return (gpu.card_uuid or gpu.uuid).startswith(word)
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


def _read_slices(nvml: Any, card: DeviceReading) -> tuple[DeviceReading, ...] | None:
    """Return the slices of a card; None if it is not divided. Raises what NVML raises."""
    handle = nvml.nvmlDeviceGetHandleByIndex(card.index)
    is_divided, _pending = nvml.nvmlDeviceGetMigMode(handle)
    if not is_divided:
        return None
    most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    slices = (ask(None, _read_slice, nvml, card, handle, place) for place in range(most))
    return tuple(each for each in slices if each)  # most places are empty


def _read_slice(nvml: Any, card: DeviceReading, handle: Any, place: int) -> DeviceReading:
    """Return a slice of a card. Its speed is rough: its share of the card's parts."""
    part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
    memory = nvml.nvmlDeviceGetMemoryInfo(part)
    size = ask(None, nvml.nvmlDeviceGetAttributes, part)
    share = size.gpuInstanceSliceCount / SLICES_OF_A_CARD if size else 0.0
    memory_share = min(1.0, int(memory.total) / card.capacity_bytes)
    instance = ask("", nvml.nvmlDeviceGetGpuInstanceId, part)
    compute_instance = ask("", nvml.nvmlDeviceGetComputeInstanceId, part)
    return replace(
        card,
        name=ask(f"{card.name} MIG", nvml.nvmlDeviceGetName, part),
        uuid=nvml.nvmlDeviceGetUUID(part),
        capacity_bytes=int(memory.total),
        used_bytes=int(memory.used),
        free_bytes=int(memory.free),
        memory_bandwidth_bytes_per_second=card.memory_bandwidth_bytes_per_second * memory_share,
        flops=card.flops * share,
        processes=ask((), _processes, nvml, part),
        card_uuid=card.uuid,
        place_on_card=f"{instance}/{compute_instance}",
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
