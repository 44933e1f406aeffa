"""What this machine has now: cards, or why there is none, processor, memory, disk. No GPU is a fact, not an error."""

import dataclasses
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import psutil

from core.device.cards import DeviceReading, ask, read_gpus, visible_gpus
from core.device.known import as_gpu
from core.models import Gpu

GIB = 2**30
NO_GPU_REASONS = {
    "ModuleNotFoundError": "the package nvidia-ml-py is missing; install it with `make setup`",
    "NVMLError_LibraryNotFound": "no NVIDIA driver was found; a card needs one from nvidia.com/drivers",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not running; restart the computer",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA driver was updated; restart the computer",
    "NVMLError_NoPermission": "this account may not use the NVIDIA driver; see the owner of /dev/nvidia*",
}
"""What went wrong with NVML (the exception's name) -> what that means and what to do."""

CPU_FLOPS_PER_CORE = 50e9
"""Rough: half of 32 FLOP per cycle (two AVX2 multiply-adds of 8 floats) at 3 GHz."""
CPU_BANDWIDTH_BYTES_PER_SECOND = 51.2e9
"""Rough: two channels of DDR4-3200."""


@dataclass(frozen=True)
class Machine:
    """What this machine has now. Sizes in bytes."""

    gpus: tuple[DeviceReading, ...]
    """Those that CUDA_VISIBLE_DEVICES leaves visible, in its order."""
    no_gpu_reason: str
    """Why there is no GPU and what to do; empty if there is one."""
    cpu_name: str
    num_cores: int
    """Logical cores that this process may use."""
    ram_bytes: int
    """Memory of the machine, or of the container if that has less."""
    ram_available_bytes: int
    disk_free_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return dataclasses.asdict(self)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """The same as (what, how much) for people."""
        ram = f"{_gib(self.ram_available_bytes)} of {_gib(self.ram_bytes)} GiB free"
        cards = tuple(_card_facts(gpu) for gpu in self.gpus) or (
            ("GPU", f"none: {self.no_gpu_reason}"),
        )
        rest = (
            ("processor", f"{self.cpu_name}, {self.num_cores} cores"),
            ("memory", ram),
            ("disk", f"{_gib(self.disk_free_bytes)} GiB free"),
        )
        return cards + rest


def this_machine(folder: Path = Path()) -> Machine:
    """What this machine has now, with the disk that holds `folder`. Never raises; asks at most once a second."""
    return _machine_at(folder, int(time.monotonic()))


def local_gpu(machine: Machine | None = None, index: int = 0) -> Gpu:
    """The device that the job's `local` stands for: a GPU, or the processor with the RAM as its capacity.

    Raises IndexError if the machine has GPUs, but not that many.
    """
    machine = machine or this_machine()
    return as_gpu(machine.gpus[index]) if machine.gpus else _as_cpu(machine)


def chip(machine: Machine | None = None) -> str:
    """The device in a few words: "RTX 4090 · 3.1 / 24.0 GiB in use"."""
    machine = machine or this_machine()
    if not machine.gpus:
        return f"CPU only · {_gib(machine.ram_bytes)} GiB RAM"
    gpu = machine.gpus[0]
    return f"{gpu.short_name} · {_gib(gpu.used_bytes)} / {_gib(gpu.capacity_bytes)} GiB in use"


def read_machine(folder: Path, load_nvml: Callable[[], Any], visible: str | None) -> Machine:
    """A new reading; `visible` as in CUDA_VISIBLE_DEVICES, None for all. Whatever NVML raises means no GPU."""
    found: tuple[DeviceReading, ...] = ()
    reason = ""
    try:
        found = read_gpus(load_nvml())
    except (
        Exception
    ) as error:  # a broken driver must not take the page down, and breaks in ways of its own
        reason = NO_GPU_REASONS.get(
            type(error).__name__, f"the NVIDIA driver does not answer ({error})"
        )
    seen = visible_gpus(found, visible)
    if not reason and not seen:
        reason = (
            f"CUDA_VISIBLE_DEVICES={visible} hides it"
            if found
            else "the NVIDIA driver shows no card"
        )
    ram = psutil.virtual_memory()
    limit = _container_ram_bytes()
    return Machine(
        gpus=seen,
        no_gpu_reason=reason,
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
    """NVML, started once and left running: starting takes long where no other program holds the driver."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _as_cpu(machine: Machine) -> Gpu:
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


def _card_facts(gpu: DeviceReading) -> tuple[str, str]:
    memory = f"{_gib(gpu.free_bytes)} of {_gib(gpu.capacity_bytes)} GiB free"
    capability = ".".join(map(str, gpu.compute_capability))
    return (
        f"GPU {gpu.index}",
        f"{gpu.short_name}, {memory}, compute capability {capability}, driver {gpu.driver}",
    )


def _cpu_name() -> str:
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _num_cores() -> int:
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else psutil.cpu_count() or 1
    )


def _container_ram_bytes() -> float:
    """What a container may use (cgroup version 2, then 1); infinite if it may use everything."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = ask("", Path(path).read_text).strip()
        if limit.isdecimal():
            return int(limit)
    return float("inf")


def _disk_free_bytes(folder: Path) -> int:
    """Of the disk that holds the folder, or would hold it."""
    absolute = folder.absolute()
    there = next((place for place in (absolute, *absolute.parents) if place.exists()), None)
    return ask(0, lambda: shutil.disk_usage(there or "/").free)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
