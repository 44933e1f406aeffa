"""Device memory: which tensors are alive, and a log of every allocation and release.

Counts bytes and remembers where they peaked. Never chooses addresses; the allocator does that.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from core.memory.components import Component

ROUNDING_BYTES = 512
"""CUDA allocations are multiples of this (kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp)."""


class Tensor:
    """One storage on the device, alive as long as a variable, the graph or a cache refers to it."""

    __slots__ = ("id", "is_recomputable", "itemsize", "num_references", "numel", "requires_grad")

    def __init__(self, id: int, numel: int, itemsize: int, requires_grad: bool):
        self.id = id
        self.numel = numel
        self.itemsize = itemsize
        self.requires_grad = requires_grad
        self.is_recomputable = False
        """True if torch.compile may recompute it in the backward pass: it takes no matmul."""
        self.num_references = 1

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements, before rounding."""
        return self.numel * self.itemsize


class ScopePeak(NamedTuple):
    """Most bytes alive within one scope of the program."""

    num_bytes: int
    log_position: int
    """Length of the log right after the allocation that reached the peak."""


@dataclass
class DeviceMemory:
    """Memory in use. Tensors are reference-counted, as in PyTorch: the last release frees."""

    log: list[int] = field(default_factory=list)
    """Tensor id n where tensor n was allocated, ~n where it was freed."""
    sizes: list[int] = field(default_factory=list)
    """Rounded bytes of each tensor id."""
    components: list[Component] = field(default_factory=list)
    """Component of each tensor id."""
    live_bytes: int = 0
    peaks: dict[str, ScopePeak] = field(default_factory=dict)
    """Peak of each scope."""
    scope: str = ""
    """Part of the program that runs now, such as `load` or `backward/0/-1`."""
    marks: list[tuple[int, str]] = field(default_factory=list)
    """(position in the log, label) of each entry into a scope."""
    is_suppressed: bool = False
    """While true, new tensors take no memory: they belong to operations that are never run."""
    _scope_peak_bytes: int = 0

    def enter(self, scope: str, label: str = "") -> None:
        """Begin or continue a named scope. Each scope keeps its own peak."""
        self.scope = scope
        self.marks.append((len(self.log), label or scope))
        peak = self.peaks.get(scope)
        self._scope_peak_bytes = peak.num_bytes if peak else 0
        if self.live_bytes > self._scope_peak_bytes:
            self._keep_peak()

    def allocate(
        self, numel: int, itemsize: int, component: Component, requires_grad: bool = False
    ) -> Tensor:
        """Allocate a tensor and return it with one reference."""
        # A search for the largest batch comes here millions of times, so nothing is called twice.
        sizes, log = self.sizes, self.log
        number, size = len(sizes), 0
        if not self.is_suppressed:
            size = -(-numel * itemsize // ROUNDING_BYTES) * ROUNDING_BYTES
        sizes.append(size)
        self.components.append(component)
        log.append(number)
        self.live_bytes += size
        if self.live_bytes > self._scope_peak_bytes:
            self._keep_peak()
        return Tensor(number, numel, itemsize, requires_grad)

    def retain(self, tensor: Tensor) -> Tensor:
        """Add a reference to a tensor and return it."""
        tensor.num_references += 1
        return tensor

    def release(self, *tensors: Tensor) -> None:
        """Drop one reference to each tensor, and free those without any."""
        for tensor in tensors:
            if tensor.num_references == 1:
                self.live_bytes -= self.sizes[tensor.id]
                self.log.append(~tensor.id)
            tensor.num_references -= 1

    def temporary(self, num_bytes: int, component: Component = "temporary") -> None:
        """Allocate bytes and free them at once, as a kernel does with its workspace."""
        if num_bytes > 0:
            self.release(self.allocate(num_bytes, 1, component))

    def bytes_at_peaks(self) -> dict[str, Counter[Component]]:
        """Return the bytes alive at the peak of each scope, by component."""
        live: Counter[Component] = Counter()
        at_peaks: dict[str, Counter[Component]] = {}
        sizes, components = self.sizes, self.components
        position = 0
        for scope, peak in sorted(self.peaks.items(), key=lambda item: item[1].log_position):
            for entry in self.log[position : peak.log_position]:
                if entry >= 0:
                    live[components[entry]] += sizes[entry]
                else:
                    live[components[~entry]] -= sizes[~entry]
            position = peak.log_position
            at_peaks[scope] = live.copy()
        return at_peaks

    def _keep_peak(self) -> None:
        self._scope_peak_bytes = self.live_bytes
        self.peaks[self.scope] = ScopePeak(self.live_bytes, len(self.log))


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple
