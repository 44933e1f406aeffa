"""Memory: what is in use now, and the measured peak of each phase. Never decides anything.

On a GPU the caching allocator keeps the peak and a boundary costs microseconds; on a CPU a thread reads the resident
size of the process. Only the first passes through a phase are measured; later ones cost nothing.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import psutil
import torch

SECONDS_BETWEEN_SAMPLES = 0.01


class Gauge(Protocol):
    """How one kind of device tells its memory, in bytes."""

    name: str
    capacity_bytes: int
    baseline_bytes: int
    """In use before anything was loaded; peaks are counted from there."""

    def start(self) -> None:
        """From here on the peak is counted anew."""

    def stop(self) -> int:
        """The peak since `start`, above the baseline."""

    def forget(self) -> None:
        """Leaves what happened since `start` out of the highest values."""

    def facts(self) -> dict[str, Any]:
        """What the device is, named as in status.json."""
        return {
            "device": self.name,
            "device_capacity_bytes": self.capacity_bytes,
            "baseline_bytes": self.baseline_bytes,
        }

    def readings(self) -> dict[str, int]:
        """What is in use now, named as in metrics.jsonl."""

    def highest(self) -> dict[str, int]:
        """The highest values so far, named as in status.json."""


class Meter:
    """The peak of each phase, measured on its first passes."""

    def __init__(self, gauge: Gauge, passes: Mapping[str, int]):
        self.gauge = gauge
        self.peaks: dict[str, int] = {}
        """Phase -> highest bytes above the baseline so far."""
        self._passes_left = dict(passes)
        self._phase: str | None = None

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before ends."""
        self.leave()
        if self._passes_left.get(phase, 0) > 0:
            self._passes_left[phase] -= 1
            self._phase = phase
            self.gauge.start()

    def leave(self) -> None:
        """The phase ends."""
        if self._phase:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self.gauge.stop())
            self._phase = None

    @contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """What is inside is one pass through a phase."""
        self.enter(phase)
        yield
        self.leave()

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """What is used inside does not count as the training's."""
        self.leave()
        self.gauge.start()
        yield
        self.gauge.forget()


class CudaGauge(Gauge):
    """The memory of the GPU, as PyTorch's allocator and the driver tell it."""

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        self.capacity_bytes = torch.cuda.mem_get_info()[1]
        self.baseline_bytes = 0
        self._highest_allocated = 0
        self._highest_reserved = 0
        self._nvml = _Nvml()

    def start(self) -> None:
        """Resetting brings the allocator's peak down to what is live, so the highest values are kept here."""
        self._remember()
        torch.cuda.reset_peak_memory_stats()

    def stop(self) -> int:
        self._remember()
        return torch.cuda.max_memory_allocated()

    def forget(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def readings(self) -> dict[str, int]:
        self._remember()
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        reserved, own = torch.cuda.memory_reserved(), self._nvml.bytes_of_this_process()
        return {
            "memory_allocated_bytes": torch.cuda.memory_allocated(),
            "memory_reserved_bytes": reserved,
            "memory_peak_bytes": self._highest_allocated,
            "device_used_bytes": own or total_bytes - free_bytes,
        } | (
            {"context_bytes": own - reserved} if own else {}
        )  # what the driver keeps for this process

    def highest(self) -> dict[str, int]:
        self._remember()
        return {
            "peak_allocated_bytes": self._highest_allocated,
            "peak_reserved_bytes": self._highest_reserved,
        }

    def _remember(self) -> None:
        self._highest_allocated = max(self._highest_allocated, torch.cuda.max_memory_allocated())
        self._highest_reserved = max(self._highest_reserved, torch.cuda.max_memory_reserved())


class ProcessGauge(Gauge):
    """The resident size of this process, where there is no GPU."""

    def __init__(self) -> None:
        self.name = "CPU"
        self.capacity_bytes = psutil.virtual_memory().total
        self.baseline_bytes = _resident_bytes()
        self._sampler: _Sampler | None = None

    def start(self) -> None:
        self.stop()
        self._sampler = _Sampler()

    def stop(self) -> int:
        sampler, self._sampler = self._sampler, None
        return max(0, sampler.end() - self.baseline_bytes) if sampler else 0

    def forget(self) -> None:
        self.stop()

    def readings(self) -> dict[str, int]:
        return {"device_used_bytes": _resident_bytes()}

    def highest(self) -> dict[str, int]:
        return {}


class _Sampler:
    """A thread that remembers the highest resident size from its making to its end."""

    def __init__(self) -> None:
        self._highest = _resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory sampler", daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._done.set()
        self._thread.join()
        return max(self._highest, _resident_bytes())

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            self._highest = max(self._highest, _resident_bytes())


class _Nvml:
    """NVML's count of this process's bytes, the CUDA context among them; where there is none, there is None."""

    def __init__(self) -> None:
        self._library: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByUUID(
                f"GPU-{torch.cuda.get_device_properties(0).uuid}"
            )
            self._library = pynvml
        except Exception as error:  # no package, no library, no rights, a MIG slice: the driver's own count does then
            print(f"device_used_bytes counts the whole device: {error}")

    def bytes_of_this_process(self) -> int | None:
        """None where NVML cannot tell: in a container it sees other process numbers than the process itself."""
        if self._library is None:
            return None
        try:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(self._device)
        except self._library.NVMLError:
            return None  # no reading is worth a training
        return next((each.usedGpuMemory for each in running if each.pid == os.getpid()), None)


def gauge_here() -> Gauge:
    """The gauge of the device that trains."""
    return CudaGauge() if torch.cuda.is_available() else ProcessGauge()


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
