"""State of this machine: GPUs, processor, memory, disk. Having no GPU is not an error."""

import os
import platform
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import psutil

from core.device.cards import DeviceReading, ask, read_gpus, visible_gpus
from core.device.known import as_gpu
from core.job import Problem, SpecError
from core.models import Gpu

GIB = 2**30
NO_GPU_REASONS = {
    "ModuleNotFoundError": "the package nvidia-ml-py is missing; install it with `make setup`",
    "NVMLError_LibraryNotFound": "no NVIDIA driver was found; get one from nvidia.com/drivers",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not running; restart the computer",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA driver was updated; restart the computer",
    "NVMLError_NoPermission": "this user may not use the GPU; see the owner of /dev/nvidia*",
}
"""Name of an exception of NVML -> what it means and what to do."""
CPU_FLOPS_PER_CORE = 50e9
"""Rough: half of 32 FLOP per cycle (two AVX2 multiply-adds of 8 floats) at 3 GHz."""
CPU_BANDWIDTH_BYTES_PER_SECOND = 51.2e9
"""Rough: two channels of DDR4-3200."""


@dataclass(frozen=True)
class Machine:
    """State of this machine at one moment. Sizes in bytes."""

    gpus: tuple[DeviceReading, ...]
    """Those that CUDA_VISIBLE_DEVICES leaves visible, in its order."""
    no_gpu_reason: str
    """Why there is no GPU and what to do; "" if there is one."""
    cpu_name: str
    num_cores: int
    """Logical cores that this process may use."""
    ram_bytes: int
    """Memory of the machine, or of the container if it is limited to less."""
    ram_available_bytes: int
    disk_free_bytes: int

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return (what, how much) for people."""
        cards = tuple(_card_facts(place, gpu) for place, gpu in enumerate(self.gpus))
        ram = f"{_gib(self.ram_available_bytes)} of {_gib(self.ram_bytes)} GiB free"
        return (
            *(cards or (("GPU", f"none: {self.no_gpu_reason}"),)),
            ("processor", f"{self.cpu_name}, {self.num_cores} cores"),
            ("memory", ram),
            ("disk", f"{_gib(self.disk_free_bytes)} GiB free"),
        )

    def summary(self) -> str:
        """Return the devices in a few words: "2 × RTX 4090 · 6.2 / 48.0 GiB in use"."""
        if not self.gpus:
            return f"CPU only · {_gib(self.ram_bytes)} GiB RAM"
        names = Counter(gpu.short_name for gpu in self.gpus)
        shown = [name if count == 1 else f"{count} × {name}" for name, count in names.items()]
        used = _gib(sum(gpu.used_bytes for gpu in self.gpus))
        capacity = _gib(sum(gpu.capacity_bytes for gpu in self.gpus))
        return f"{' + '.join(shown)} · {used} / {capacity} GiB in use"


def this_machine(folder: Path = Path()) -> Machine:
    """Return the state of this machine, with the disk that holds `folder`. Read once a second."""
    return _machine_at(folder, int(time.monotonic()))


def card_of(device: int, machine: Machine | None = None) -> DeviceReading | None:
    """Return the GPU that the field `device` of a job means; None on a machine without GPUs.

    It counts the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in the order given there, as
    PyTorch does. Form, estimate, queue and launch all ask here. Raises SpecError for one that is
    not there.
    """
    cards = (machine or this_machine()).gpus
    if not cards:
        return None
    if device < len(cards):
        return cards[device]
    names = ", ".join(f"{place} ({card.short_name})" for place, card in enumerate(cards))
    raise SpecError(Problem("device", f"this machine has no GPU {device}", f"choose {names}"))


def cards_together(
    device: int, num_devices: int, machine: Machine | None = None
) -> tuple[DeviceReading, ...]:
    """Return the GPUs that train together: `num_devices` alike, from `device` on; 0 means all.

    Empty on a machine without GPUs. Raises SpecError if there are not as many.
    """
    cards = (machine or this_machine()).gpus
    return tuple(cards[place] for place in places_together(device, num_devices, machine))


def places_together(
    device: int, num_devices: int, machine: Machine | None = None
) -> tuple[int, ...]:
    """Return the places of the GPUs that train together, as the field `device` counts them.

    From `device` on, and after the last from the first one. Empty on a machine without GPUs. Raises
    SpecError if there are not as many.
    """
    machine = machine or this_machine()
    first = card_of(device, machine)
    if first is None:
        return ()
    alike = _places_like(first, machine)
    if num_devices > len(alike):
        have = "1 GPU" if len(alike) == 1 else f"{len(alike)} GPUs"
        problem = f"this machine has {have} like {first.short_name}, not {num_devices}"
        fix = "choose fewer; for a cluster, give its card as gpu"
        raise SpecError(Problem("num_devices", problem, fix))
    begin = alike.index(device)
    return (*alike[begin:], *alike[:begin])[: num_devices or len(alike)]


def device_of_places(places: Collection[int], machine: Machine | None = None) -> int:
    """Return the `device` from which on as many GPUs are those at these places.

    Raises SpecError if no job can name them: they are of several kinds, or others lie in between.
    """
    machine = machine or this_machine()
    alike = _places_like(machine.gpus[min(places)], machine)
    if not set(places) <= set(alike):
        fix = "choose GPUs of one name and memory"
        raise SpecError(Problem("num_devices", "GPUs of several kinds cannot share a job", fix))
    for device in places:
        if set(places_together(device, len(places), machine)) == set(places):
            return device
    names = ", ".join(map(str, sorted(places)))
    problem = f"GPUs that train together follow each other, and {names} do not"
    fix = "choose neighbours, or name them in CUDA_VISIBLE_DEVICES before you start Tailor"
    raise SpecError(Problem("num_devices", problem, fix))


def _places_like(card: DeviceReading, machine: Machine) -> tuple[int, ...]:
    kind = (card.name, card.capacity_bytes)
    every = enumerate(machine.gpus)
    return tuple(place for place, each in every if (each.name, each.capacity_bytes) == kind)


def local_gpu(machine: Machine | None = None, index: int = 0) -> Gpu:
    """Return the device that `local` stands for: a GPU, or the processor with RAM as its capacity.

    Raises SpecError if the machine has GPUs, but not that many.
    """
    machine = machine or this_machine()
    card = card_of(index, machine)
    if card:
        return as_gpu(card)
    return Gpu(
        id="local",
        name="CPU only",
        capacity_bytes=machine.ram_bytes,
        compute_capability=(0, 0),
        supports_bf16=False,
        memory_bandwidth_bytes_per_second=CPU_BANDWIDTH_BYTES_PER_SECOND,
        flops=CPU_FLOPS_PER_CORE * machine.num_cores,
        usd_per_hour=None,
        sources=("memory: RAM of this machine", "bandwidth, tflops: rough, of a usual processor"),
    )


def read_machine(folder: Path, load_nvml: Callable[[], Any], visible: str | None) -> Machine:
    """Read the state of this machine. `visible` is as in CUDA_VISIBLE_DEVICES, None for all.

    Any failure of NVML means no GPU.
    """
    gpus: tuple[DeviceReading, ...] = ()
    reason = "the NVIDIA driver reports no GPU"
    try:
        if all_gpus := read_gpus(load_nvml()):
            gpus = visible_gpus(all_gpus, visible)
            reason = f"CUDA_VISIBLE_DEVICES={visible} hides it"
    except Exception as error:  # a broken driver fails in many ways and must not stop the page
        unknown = f"the NVIDIA driver does not answer ({error})"
        reason = NO_GPU_REASONS.get(type(error).__name__, unknown)
    ram = psutil.virtual_memory()
    limit = _container_ram_bytes()
    return Machine(
        gpus=gpus,
        no_gpu_reason="" if gpus else reason,
        cpu_name=_cpu_name(),
        num_cores=_num_cores(),
        ram_bytes=min(ram.total, limit),
        ram_available_bytes=min(ram.available, limit),
        disk_free_bytes=_disk_free_bytes(folder),
    )


@lru_cache(maxsize=4)
def _machine_at(folder: Path, second: int) -> Machine:
    return read_machine(folder, _start_nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _start_nvml() -> Any:
    """Start NVML and leave it running: starting is slow if no other program uses the driver."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _card_facts(place: int, gpu: DeviceReading) -> tuple[str, str]:
    memory = f"{_gib(gpu.free_bytes)} of {_gib(gpu.capacity_bytes)} GiB free"
    capability = ".".join(map(str, gpu.compute_capability))
    capability_fact = f"compute capability {capability}"
    facts = [gpu.short_name, memory, capability_fact, f"driver {gpu.driver}"]
    if gpu.cuda_name != str(place):
        facts.append(f"{gpu.cuda_name} in CUDA_VISIBLE_DEVICES")
    return f"GPU {place}", ", ".join(facts)


def _cpu_name() -> str:
    text = ask("", Path("/proc/cpuinfo").read_text, "utf-8")
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return match[1]
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def _container_ram_bytes() -> float:
    """Return the limit of this container (cgroup version 2, then 1), infinity if there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = ask("", Path(path).read_text).strip()
        if limit.isdecimal():
            return int(limit)
    return float("inf")


def _disk_free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds the folder, or would hold it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.absolute().parent
    return ask(0, lambda: shutil.disk_usage(folder).free)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
