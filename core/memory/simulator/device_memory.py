"""The device memory of a simulated program: which tensors live, and the log of every allocation and release.

Counts bytes and remembers where they peaked; it never decides addresses (that is the allocator's).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "weights",
    "quantization_state",
    "adapters",
    "gradients",
    "optimizer_states",
    "activations",
    "logits",
    "reference_model",
    "value_model",
    "reward_model",
    "generation_cache",
    "temporary",
]
ROUNDING_BYTES = 512
"""Every CUDA allocation is a multiple of this (kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp)."""


class Tensor:
    """One storage on the device. It lives while anything holds it: a variable, the autograd graph, a cache."""

    __slots__ = ("holders", "id", "is_remade", "number_bytes", "numbers", "requires_grad")

    def __init__(self, id: int, numbers: int, number_bytes: int, requires_grad: bool):
        self.id = id
        self.numbers = numbers
        self.number_bytes = number_bytes
        self.requires_grad = requires_grad
        self.is_remade = False
        """A compiled layer that keeps less makes it anew, for it takes no product."""
        self.holders = 1

    @property
    def num_bytes(self) -> int:
        """Bytes that it was made for."""
        return self.numbers * self.number_bytes


@dataclass(frozen=True)
class Peak:
    """The most bytes alive within one segment of the program, and when that was."""

    num_bytes: int
    log_position: int
    """Entries of the log up to and including the allocation that reached the peak."""


@dataclass
class Heap:
    """Memory in use. Tensors are held and dropped; the last drop releases."""

    log: list[int] = field(default_factory=list)
    """Tensor id n where n was allocated, ~n where it was released."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each tensor id."""
    kinds: list[Kind] = field(default_factory=list)
    live_bytes: int = 0
    peaks: dict[str, Peak] = field(default_factory=dict)
    segment: str = ""
    is_closed: bool = False
    """While true, new tensors take no memory: they stand for what a program leaves out."""
    marks: list[tuple[int, str]] = field(default_factory=list)
    """Where in the log each visit to a segment began, and what to call it."""

    def enter(self, segment: str, label: str = "") -> None:
        """Begin (or go on with) a named segment of the program; peaks are kept for each."""
        self.segment = segment
        self.marks.append((len(self.log), label or segment))
        if self.live_bytes > self._segment_peak_bytes():
            self.peaks[segment] = Peak(self.live_bytes, len(self.log))
        self._high = self._segment_peak_bytes()

    def allocate(
        self, numbers: int, number_bytes: int, kind: Kind, requires_grad: bool = False
    ) -> Tensor:
        """A new tensor, held once."""
        tensor = Tensor(len(self.sizes), numbers, number_bytes, requires_grad)
        num_bytes = (
            0 if self.is_closed else -(-numbers * number_bytes // ROUNDING_BYTES) * ROUNDING_BYTES
        )
        self.sizes.append(num_bytes)
        self.kinds.append(kind)
        self.log.append(tensor.id)
        self.live_bytes += num_bytes
        if self.live_bytes > self._high:
            self._high = self.live_bytes
            self.peaks[self.segment] = Peak(self.live_bytes, len(self.log))
        return tensor

    def hold(self, tensor: Tensor) -> Tensor:
        """The same tensor, held once more."""
        tensor.holders += 1
        return tensor

    def drop(self, *tensors: Tensor) -> None:
        """One holder less for each."""
        for tensor in tensors:
            tensor.holders -= 1
            if tensor.holders == 0:
                self.live_bytes -= self.sizes[tensor.id]
                self.log.append(~tensor.id)

    def scratch(self, num_bytes: int, kind: Kind = "temporary") -> None:
        """Bytes that are free again before anything else is allocated."""
        if num_bytes > 0:
            self.drop(self.allocate(num_bytes, 1, kind))

    def compositions(self) -> dict[str, Counter[Kind]]:
        """Bytes alive at the peak of each segment, by kind."""
        live: Counter[Kind] = Counter()
        found: dict[str, Counter[Kind]] = {}
        position = 0
        for segment, peak in sorted(self.peaks.items(), key=lambda item: item[1].log_position):
            for entry in self.log[position : peak.log_position]:
                if entry >= 0:
                    live[self.kinds[entry]] += self.sizes[entry]
                else:
                    live[self.kinds[~entry]] -= self.sizes[~entry]
            position = peak.log_position
            found[segment] = live.copy()
        return found

    def _segment_peak_bytes(self) -> int:
        peak = self.peaks.get(self.segment)
        return peak.num_bytes if peak else 0

    _high: int = 0
