"""Device memory: which tensors are alive, and a log of every allocation and release.

Counts bytes and remembers where they peaked. Never chooses addresses; the allocator does that.
"""

from collections import Counter
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class ScopePeak:
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
        self._update_peak()

    def allocate(
        self, numel: int, itemsize: int, component: Component, requires_grad: bool = False
    ) -> Tensor:
        """Allocate a tensor and return it with one reference."""
        tensor = Tensor(len(self.sizes), numel, itemsize, requires_grad)
        size = 0 if self.is_suppressed else round_up(numel * itemsize, ROUNDING_BYTES)
        self.sizes.append(size)
        self.components.append(component)
        self.log.append(tensor.id)
        self.live_bytes += size
        self._update_peak()
        return tensor

    def retain(self, tensor: Tensor) -> Tensor:
        """Add a reference to a tensor and return it."""
        tensor.num_references += 1
        return tensor

    def release(self, *tensors: Tensor) -> None:
        """Drop one reference to each tensor, and free those without any."""
        for tensor in tensors:
            tensor.num_references -= 1
            if tensor.num_references == 0:
                self.live_bytes -= self.sizes[tensor.id]
                self.log.append(~tensor.id)

    def temporary(self, num_bytes: int, component: Component = "temporary") -> None:
        """Allocate bytes and free them at once, as a kernel does with its workspace."""
        if num_bytes > 0:
            self.release(self.allocate(num_bytes, 1, component))

    def bytes_at_peaks(self) -> dict[str, Counter[Component]]:
        """Return the bytes alive at the peak of each scope, by component."""
        live: Counter[Component] = Counter()
        at_peaks: dict[str, Counter[Component]] = {}
        position = 0
        for scope, peak in sorted(self.peaks.items(), key=lambda item: item[1].log_position):
            for entry in self.log[position : peak.log_position]:
                if entry >= 0:
                    live[self.components[entry]] += self.sizes[entry]
                else:
                    live[self.components[~entry]] -= self.sizes[~entry]
            position = peak.log_position
            at_peaks[scope] = live.copy()
        return at_peaks

    def _update_peak(self) -> None:
        if self.live_bytes > self._scope_peak_bytes:
            self._scope_peak_bytes = self.live_bytes
            self.peaks[self.scope] = ScopePeak(self.live_bytes, len(self.log))


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple
