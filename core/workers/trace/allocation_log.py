"""Log of every storage that an operation allocates and of every one that is freed, in order.

Knows nothing of models.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.memory.simulator import ROUNDING_BYTES

TemporaryBytes = Callable[..., int]
"""Arguments of an operation -> bytes that its CUDA kernel needs while it runs, beside its results.
"""


@dataclass(frozen=True)
class SegmentPeak:
    """Most bytes alive within one segment, and the operation that reached it."""

    num_bytes: int
    operation: str


class AllocationLog(TorchDispatchMode):
    """Log of allocations while it is entered (`with log:`), with a peak for each segment.

    A segment is a named part of the program, such as `forward` or `backward/31`. `events` holds n
    where allocation n was made and ~n where it was freed; `sizes[n]` are its bytes.
    """

    def __init__(self, temporary_bytes: Mapping[str, TemporaryBytes]):
        """`temporary_bytes`: operation -> bytes that its CUDA kernel needs beside its results."""
        super().__init__()
        self.events: list[int] = []
        self.sizes: list[int] = []
        self.live_bytes = 0
        self.peaks: dict[str, SegmentPeak] = {}
        self._segment = "load"
        self._temporary_bytes = temporary_bytes
        self._known_storages: set[int] = set()

    def enter(self, segment: str) -> None:
        """Begin or continue a segment."""
        self._segment = segment
        self._update_peak("start")

    @property
    def phase(self) -> str:
        """Phase that the current segment belongs to."""
        return self._segment.split("/")[0]

    def allocate(self, num_bytes: int, operation: str) -> int:
        """Allocate bytes that no tensor stands for. Return their number in the log."""
        number = len(self.sizes)
        self.sizes.append(-(-num_bytes // ROUNDING_BYTES) * ROUNDING_BYTES)
        self.events.append(number)
        self.live_bytes += self.sizes[number]
        self._update_peak(operation)
        return number

    def free(self, number: int) -> None:
        """Free an allocation."""
        self.live_bytes -= self.sizes[number]
        self.events.append(~number)

    @contextmanager
    def temporary(self, num_bytes: int, operation: str) -> Iterator[None]:
        """Allocate bytes for the duration of the block."""
        if num_bytes == 0:
            yield
            return
        number = self.allocate(num_bytes, operation)
        yield
        self.free(number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and log the storages that it makes. torch calls this for every one."""
        if func is torch.ops.prim.device.default:  # most calls by far; allocates nothing
            return args[0].fake_device
        if func is torch.ops.aten.add.Tensor and _sums_gradients_in_place(*args[:2]):
            return args[0].add_(args[1])
        kwargs = kwargs or {}
        name = func._schema.name
        num_bytes = 0
        if name in self._temporary_bytes:
            num_bytes = self._temporary_bytes[name](*args, **kwargs)
        with self.temporary(num_bytes, name):
            result = func(*args, **kwargs)
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._log_storage(leaf, name)
        return result

    def _log_storage(self, tensor: torch.Tensor, operation: str) -> None:
        """Log a storage if it is new; views share one that is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known_storages or storage.nbytes() == 0:
            return
        self._known_storages.add(key)
        number = self.allocate(storage.nbytes(), operation)
        weakref.finalize(storage, self._storage_freed, key, number)

    def _storage_freed(self, key: int, number: int) -> None:
        self._known_storages.discard(key)
        self.free(number)

    def _update_peak(self, operation: str) -> None:
        peak = self.peaks.get(self._segment)
        if peak is None or self.live_bytes > peak.num_bytes:
            self.peaks[self._segment] = SegmentPeak(self.live_bytes, operation)


DISPATCH_FRAMES = ("__torch_dispatch__", "_fn", "inner")
"""Python functions between an operation and the code here: torch wraps every __torch_dispatch__."""
USE_COUNT_OF_SOLE_OWNER = 4
STORAGE_USE_COUNT_OF_SOLE_OWNER = 2
"""Use counts, seen from __torch_dispatch__, of a gradient that only the engine holds (torch 2.13).
"""


def _sums_gradients_in_place(old: Any, new: Any) -> bool:
    """Return True if on a device this `old + new` is `old.add_(new)`.

    The autograd engine sums two gradients of one tensor in place if nothing else holds the first,
    but never for tensors of a subclass, such as those without data: InputBuffer::accumulate in
    torch/csrc/autograd/input_buffer.cpp.
    """
    if torch.is_grad_enabled():
        return False
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return False
    if old.shape != new.shape or not _has_sole_owner(old):
        return False
    return _calling_function() == "_engine_run_backward"


def _has_sole_owner(tensor: torch.Tensor) -> bool:
    use_count = tensor._use_count()  # type: ignore[attr-defined]  # not in torch's stubs
    if use_count > USE_COUNT_OF_SOLE_OWNER:
        return False
    storage = tensor.untyped_storage()._cdata
    return bool(torch._C._storage_Use_Count(storage) <= STORAGE_USE_COUNT_OF_SOLE_OWNER)


def _calling_function() -> str:
    """Return the Python function that ran the current operation, or called the engine that did."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_code.co_name in DISPATCH_FRAMES:
        frame = frame.f_back
    if frame:
        return frame.f_code.co_name
    return ""
