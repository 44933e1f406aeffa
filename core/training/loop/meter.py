"""Memory in use, and the measured peak of each phase. Only measures; never decides anything.

On a GPU the caching allocator keeps the peak, and a phase boundary costs microseconds. On a CPU a
thread samples the resident size of the process. Only the first passes through a phase are measured;
later ones cost nothing.
"""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

SECONDS_BETWEEN_SAMPLES = 0.01


class MemoryGauge(Protocol):
    """Memory of one kind of device, in bytes."""

    name: str
    capacity_bytes: int
    baseline_bytes: int
    """Memory in use before anything was loaded; peaks are above it."""

    def start(self) -> None:
        """Start measuring a peak."""

    def stop(self) -> int:
        """Return the peak since `start`, above the baseline."""

    def discard(self) -> None:
        """Keep what happened since `start` out of the highest values."""

    def facts(self) -> dict[str, Any]:
        """Return the device's name, capacity and baseline, named as in status.json."""
        return {
            "device": self.name,
            "device_capacity_bytes": self.capacity_bytes,
            "baseline_bytes": self.baseline_bytes,
        }

    def readings(self) -> dict[str, int]:
        """Return the memory in use now, named as in metrics.jsonl."""

    def highest(self) -> dict[str, int]:
        """Return the highest values so far, named as in status.json."""


class MemoryMeter:
    """Peak of each phase, measured on its first passes."""

    def __init__(self, gauge: MemoryGauge, passes: Mapping[str, int]):
        """`passes`: how many passes through each phase are measured."""
        self.gauge = gauge
        self.peaks: dict[str, int] = {}
        """Phase -> highest bytes above the baseline so far."""
        self._passes_left = dict(passes)
        self._phase: str | None = None

    def enter(self, phase: str) -> None:
        """Begin a phase; the one before ends."""
        self.leave()
        if self._passes_left.get(phase, 0) > 0:
            self._passes_left[phase] -= 1
            self._phase = phase
            self.gauge.start()

    def leave(self) -> None:
        """End the phase."""
        if self._phase:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self.gauge.stop())
            self._phase = None

    @contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """Measure the block as one pass through a phase."""
        self.enter(phase)
        yield
        self.leave()

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """Keep the memory of the block out of all peaks."""
        self.leave()
        self.gauge.start()
        yield
        self.gauge.discard()


class CudaGauge(MemoryGauge):
    """Memory of the GPU, from PyTorch's allocator and the driver."""

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        self.capacity_bytes = torch.cuda.mem_get_info()[1]
        self.baseline_bytes = 0
        self._highest_allocated = 0
        self._highest_reserved = 0
        self._highest_on_device = 0
        self._nvml = _Nvml()

    def start(self) -> None:
        # A reset lowers the allocator's peak to what is allocated now, so the highest values are
        # kept here.
        self._update_highest()
        torch.cuda.reset_peak_memory_stats()

    def stop(self) -> int:
        self._update_highest()
        return torch.cuda.max_memory_allocated()

    def discard(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def readings(self) -> dict[str, int]:
        self._update_highest()
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        own = self._nvml.bytes_of_this_process()
        self._highest_on_device = max(self._highest_on_device, own or 0)
        readings = {
            "memory_allocated_bytes": torch.cuda.memory_allocated(),
            "memory_reserved_bytes": reserved,
            "memory_peak_bytes": self._highest_allocated,
            "device_used_bytes": own or total_bytes - free_bytes,
        }
        if own:
            readings["context_bytes"] = own - reserved  # what the driver keeps for this process
        return readings

    def highest(self) -> dict[str, int]:
        self._update_highest()
        highest = {
            "peak_allocated_bytes": self._highest_allocated,
            "peak_reserved_bytes": self._highest_reserved,
        }
        if self._highest_on_device:
            # At a peak the process holds at least what PyTorch has reserved.
            on_device = max(self._highest_on_device, self._highest_reserved)
            highest["peak_device_bytes"] = on_device
        return highest

    def _update_highest(self) -> None:
        self._highest_allocated = max(self._highest_allocated, torch.cuda.max_memory_allocated())
        self._highest_reserved = max(self._highest_reserved, torch.cuda.max_memory_reserved())


class ProcessGauge(MemoryGauge):
    """Resident size of this process, where there is no GPU."""

    def __init__(self) -> None:
        self.name = "CPU"
        self.capacity_bytes = psutil.virtual_memory().total
        self.baseline_bytes = _resident_bytes()
        self._highest = self.baseline_bytes
        self._sampler: _Sampler | None = None

    def start(self) -> None:
        self.stop()
        self._sampler = _Sampler()

    def stop(self) -> int:
        if self._sampler is None:
            return 0
        peak = self._sampler.end()
        self._highest = max(self._highest, peak)
        self._sampler = None
        return max(0, peak - self.baseline_bytes)

    def discard(self) -> None:
        self.stop()

    def readings(self) -> dict[str, int]:
        return {"device_used_bytes": _resident_bytes()}

    def highest(self) -> dict[str, int]:
        self._highest = max(self._highest, _peak_resident_bytes())
        return {"peak_process_bytes": self._highest}


class _Sampler:
    """Thread that keeps the highest resident size until `end`."""

    def __init__(self) -> None:
        self._highest = _resident_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory sampler", daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._is_over.set()
        self._thread.join()
        return max(self._highest, _resident_bytes())

    def _sample(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_SAMPLES):
            self._highest = max(self._highest, _resident_bytes())


class _Nvml:
    """NVML's count of the bytes of this process, with its CUDA context; None without NVML."""

    def __init__(self) -> None:
        self._library: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByUUID(
                f"GPU-{torch.cuda.get_device_properties(0).uuid}"
            )
            self._library = pynvml
        except Exception as error:
            # No package, no library, no rights or a MIG slice: the driver's count of the device has
            # to do.
            print(f"device_used_bytes counts the whole device: {error}")

    def bytes_of_this_process(self) -> int | None:
        """Return None where NVML cannot say: in a container it sees other process ids than the
        process itself."""
        if self._library is None:
            return None
        try:
            processes = self._library.nvmlDeviceGetComputeRunningProcesses(self._device)
        except self._library.NVMLError:
            return None  # a reading is not worth a training
        for process in processes:
            if process.pid == os.getpid():
                used_bytes: int | None = process.usedGpuMemory
                return used_bytes
        return None


def gauge_of_device() -> MemoryGauge:
    """Return the gauge of the device that trains."""
    return CudaGauge() if torch.cuda.is_available() else ProcessGauge()


def _peak_resident_bytes() -> int:
    """Return the highest resident size since the start of this process, as the system kept it.

    Where the system keeps none, that of this moment. `getrusage` is no help: it begins with the
    size of the process that started this one.
    """
    if match := re.search(r"^VmHWM:\s*(\d+) kB", _own_status(), re.MULTILINE):
        return int(match[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))  # Windows keeps it


def _own_status() -> str:
    try:
        return Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return ""


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
