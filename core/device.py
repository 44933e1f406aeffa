"""What this machine has: GPUs, processor, memory, disk; and which processes are still the ones we started.

Asks NVML, psutil and the system; never torch, never CUDA: it takes no GPU memory. No GPU is a fact here, not an error.
"""

import dataclasses
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import psutil

from core.presets import Gpu, gpus

T = TypeVar("T")

GIB = 2**30
MHZ = 10**6

NO_GPU_REASONS = {
    "ModuleNotFoundError": "the package nvidia-ml-py is missing; install it with `make setup`",
    "NVMLError_LibraryNotFound": "no NVIDIA driver was found; a card needs one from nvidia.com/drivers",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not running; restart the computer",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA driver was updated; restart the computer",
    "NVMLError_NoPermission": "this account may not use the NVIDIA driver; see the owner of /dev/nvidia*",
}
"""What went wrong with NVML (the exception's name) -> what that means and what to do."""

NAME_NOISE = re.compile(
    r"nvidia|geforce|tesla|gpu|generation|blackwell|workstation|server|edition|sxm\d?|hbm\d\w*|\d+gb?", re.IGNORECASE
)
"""Words of an NVML name that do not tell cards apart, or that the capacity tells better."""
FORM_FACTORS = {"pcie", "nvl"}
"""Words that tell cards apart only where the presets do."""
CAPACITY_TOLERANCE = 0.1
"""Drivers and ECC move a card's capacity by up to 7 %; cards of one name differ by 20 % and more."""

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

CPU_FLOPS_PER_CORE = 50e9
"""Rough: half of 32 FLOP per cycle (two AVX2 multiply-adds of 8 floats) at 3 GHz."""
CPU_BANDWIDTH_BYTES_PER_SECOND = 51.2e9
"""Rough: two channels of DDR4-3200."""


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
        cards = tuple(_card_facts(gpu) for gpu in self.gpus) or (("GPU", f"none: {self.no_gpu_reason}"),)
        rest = (
            ("processor", f"{self.cpu_name}, {self.num_cores} cores"),
            ("memory", ram),
            ("disk", f"{_gib(self.disk_free_bytes)} GiB free"),
        )
        return cards + rest


def this_machine(folder: Path = Path()) -> Machine:
    """What this machine has now, with the disk that holds `folder`. Never raises; asks at most once a second."""
    return _machine_at(folder, int(time.monotonic()))


def local_gpu(machine: Machine | None = None) -> Gpu:
    """The device that the job's `local` stands for: the first GPU, or the processor with the RAM as its capacity."""
    machine = machine or this_machine()
    return _as_gpu(machine.gpus[0]) if machine.gpus else _as_cpu(machine)


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
    except Exception as error:  # a broken driver must not take the page down, and breaks in ways of its own
        reason = NO_GPU_REASONS.get(type(error).__name__, f"the NVIDIA driver does not answer ({error})")
    seen = _visible_gpus(found, visible)
    if not reason and not seen:
        reason = f"CUDA_VISIBLE_DEVICES={visible} hides it" if found else "the NVIDIA driver shows no card"
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


def read_gpus(nvml: Any) -> tuple[DeviceReading, ...]:
    """The GPUs that a started NVML module shows, in its order; one that does not even tell its memory is left out."""
    readings = (_ask(None, _read_gpu, nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    return tuple(reading for reading in readings if reading)


def find_preset(name: str, capacity_bytes: int, presets: Sequence[Gpu] | None = None) -> Gpu | None:
    """The preset of the card that NVML calls `name`, told from its namesakes by its capacity; None if there is none."""
    words = _telling_words(name)
    close = [
        gpu
        for gpu in (gpus().values() if presets is None else presets)
        if abs(gpu.capacity_bytes - capacity_bytes) <= CAPACITY_TOLERANCE * gpu.capacity_bytes
    ]
    for wanted in (words, words - FORM_FACTORS):
        if same := [gpu for gpu in close if _telling_words(gpu.id) == wanted]:
            return min(same, key=lambda gpu: abs(gpu.capacity_bytes - capacity_bytes))
    return None


@dataclass(frozen=True)
class ProcessId:
    """A process, told from any other that had or will have its pid."""

    pid: int
    start_time: float
    """Linux: seconds since boot, which setting the clock does not move. Elsewhere: since 1970."""
    boot_id: str

    @staticmethod
    @cache
    def this_boot() -> str:
        """A name for the time since this machine was started."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return str(round(psutil.boot_time(), -2))  # Windows counts it anew each time, a second more or less


def identify(pid: int) -> ProcessId | None:
    """The identity of a living process; None if there is none with this pid."""
    times = _start_times(pid)
    return ProcessId(pid, times[0][0], ProcessId.this_boot()) if times else None


def is_alive(process: ProcessId) -> bool:
    """True if this very process still runs. A zombie does not; nor does what took its pid, or came after a restart."""
    if process.boot_id != ProcessId.this_boot():
        return False
    return any(abs(start - process.start_time) <= tolerance for start, tolerance in _start_times(process.pid))


def _start_times(pid: int) -> tuple[tuple[float, float], ...]:
    """When a process started, on each clock, the best first, with the seconds that the clock may be off; () if dead.

    Both, so that a process may tell of itself what psutil's create_time says.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ()
        since_1970 = (process.create_time(), 1.5)  # the boot time in it is a whole second that may flip
        return (*_since_boot(pid), since_1970)
    except (psutil.Error, OSError, ValueError, OverflowError):
        return ()


def _since_boot(pid: int) -> tuple[tuple[float, float], ...]:
    """Field 22 of /proc/PID/stat, see proc_pid_stat(5); the name before it may hold spaces and brackets."""
    if platform.system() != "Linux":
        return ()
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return ((int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.005),)


@lru_cache(maxsize=4)
def _machine_at(folder: Path, second: int) -> Machine:
    return read_machine(folder, _start_nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _start_nvml() -> Any:
    """NVML, started once and left running: starting takes long where no other program holds the driver."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _read_gpu(nvml: Any, index: int) -> DeviceReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = _ask((0, 0), nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return DeviceReading(
        index=index,
        name=_ask("NVIDIA GPU", nvml.nvmlDeviceGetName, handle),
        uuid=_ask("", nvml.nvmlDeviceGetUUID, handle),
        capacity_bytes=int(memory.total),
        used_bytes=int(memory.used),
        free_bytes=int(memory.free),
        compute_capability=(major, minor),
        driver=_ask("", nvml.nvmlSystemGetDriverVersion),
        memory_bandwidth_bytes_per_second=_ask(0.0, _memory_bandwidth, nvml, handle),
        flops=_ask(0.0, _flops, nvml, handle, (major, minor)),
        processes=_ask((), _processes, nvml, handle),
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
        GpuProcess(process.pid, _ask("", nvml.nvmlSystemGetProcessName, process.pid), process.usedGpuMemory)
        for process in found
    )
    return tuple(sorted(processes, key=lambda process: -(process.used_bytes or 0)))


def _visible_gpus(readings: tuple[DeviceReading, ...], visible: str | None) -> tuple[DeviceReading, ...]:
    """As CUDA reads CUDA_VISIBLE_DEVICES: indices or beginnings of UUIDs, up to the first that fits no card."""
    if visible is None:
        return readings
    chosen: list[DeviceReading] = []
    for word in map(str.strip, visible.split(",")):
        fits = [gpu for gpu in readings if word == str(gpu.index) or (word[:4] == "GPU-" and gpu.uuid.startswith(word))]
        if len(fits) != 1:
            break
        chosen += fits
    return tuple(chosen)


def _as_gpu(reading: DeviceReading) -> Gpu:
    preset = find_preset(reading.name, reading.capacity_bytes)
    return Gpu(
        id="local",
        name=reading.short_name,
        capacity_bytes=reading.capacity_bytes,
        compute_capability=reading.compute_capability,
        supports_bf16=reading.compute_capability >= (8, 0),
        memory_bandwidth_bytes_per_second=(preset or reading).memory_bandwidth_bytes_per_second,
        flops=(preset or reading).flops,
        usd_per_hour=preset.usd_per_hour if preset else None,
        sources=preset.sources if preset else ("memory, bandwidth: NVML", "tflops: rough, cores x clock from NVML"),
    )


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


def _telling_words(name: str) -> set[str]:
    words = re.split(r"[\s-]+", name.lower())
    return {word for word in words if word and not NAME_NOISE.fullmatch(word)}


def _card_facts(gpu: DeviceReading) -> tuple[str, str]:
    memory = f"{_gib(gpu.free_bytes)} of {_gib(gpu.capacity_bytes)} GiB free"
    capability = ".".join(map(str, gpu.compute_capability))
    return f"GPU {gpu.index}", f"{gpu.short_name}, {memory}, compute capability {capability}, driver {gpu.driver}"


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1


def _container_ram_bytes() -> float:
    """What a container may use (cgroup version 2, then 1); infinite if it may use everything."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _ask("", Path(path).read_text).strip()
        if limit.isdecimal():
            return int(limit)
    return float("inf")


def _disk_free_bytes(folder: Path) -> int:
    """Of the disk that holds the folder, or would hold it."""
    absolute = folder.absolute()
    there = next((place for place in (absolute, *absolute.parents) if place.exists()), None)
    return _ask(0, lambda: shutil.disk_usage(there or "/").free)


def _ask(default: T, question: Callable[..., T], *arguments: object) -> T:
    """The answer, or the default: not every driver and system answers every question."""
    try:
        return question(*arguments)
    except Exception:
        return default


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
