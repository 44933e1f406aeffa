"""The ledger: every storage that an operation makes and every one that dies, in order. Knows nothing of models."""

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

ROUNDING_BYTES = 512
"""Every CUDA allocation is a multiple of this (kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp)."""
Scratch = Callable[..., int]
"""The arguments of an operation -> bytes that its CUDA kernel needs while it runs, beside its results."""


@dataclass(frozen=True)
class Peak:
    """The most bytes alive within one segment, and the operation that reached it."""

    num_bytes: int
    operation: str


class Ledger(TorchDispatchMode):
    """Counts storages while it is entered (`with ledger:`).

    `log` holds n where allocation n was made and ~n where it was released; `sizes[n]` are its bytes.
    """

    def __init__(self, scratch: Mapping[str, Scratch]):
        super().__init__()
        self.log: list[int] = []
        self.sizes: list[int] = []
        self.live_bytes = 0
        self.peaks: dict[str, Peak] = {}
        self._segment = "load"
        self._scratch = scratch
        self._storages: set[int] = set()

    def enter(self, segment: str) -> None:
        """Begin, or go on with, a named part of the program; peaks are kept for each."""
        self._segment = segment
        self._note_peak("start")

    @property
    def phase(self) -> str:
        """The phase that the present segment belongs to."""
        return self._segment.split("/")[0]

    def allocate(self, num_bytes: int, operation: str) -> int:
        """Bytes that no tensor stands for. Returns their number in the log."""
        entry = len(self.sizes)
        self.sizes.append(-(-num_bytes // ROUNDING_BYTES) * ROUNDING_BYTES)
        self.log.append(entry)
        self.live_bytes += self.sizes[entry]
        self._note_peak(operation)
        return entry

    def release(self, entry: int) -> None:
        """The end of an allocation."""
        self.live_bytes -= self.sizes[entry]
        self.log.append(~entry)

    @contextmanager
    def scratch(self, num_bytes: int, operation: str) -> Iterator[None]:
        """Bytes that live as long as the block."""
        if not num_bytes:
            yield
            return
        entry = self.allocate(num_bytes, operation)
        yield
        self.release(entry)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most calls by far
            return args[0].fake_device
        if func is torch.ops.aten.add.Tensor and _sums_gradients_in_place(*args[:2]):
            return args[0].add_(args[1])
        name = func._schema.name
        num_bytes = self._scratch[name](*args, **(kwargs or {})) if name in self._scratch else 0
        with self.scratch(num_bytes, name):
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._record(leaf, name)
        return result

    def _record(self, tensor: torch.Tensor, operation: str) -> None:
        """Note a storage that is new; views share one that is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages or storage.nbytes() == 0:
            return
        self._storages.add(key)
        weakref.finalize(storage, self._end, key, self.allocate(storage.nbytes(), operation))

    def _end(self, key: int, entry: int) -> None:
        self._storages.discard(key)
        self.release(entry)

    def _note_peak(self, operation: str) -> None:
        peak = self.peaks.get(self._segment)
        if peak is None or self.live_bytes > peak.num_bytes:
            self.peaks[self._segment] = Peak(self.live_bytes, operation)


DISPATCH_FRAMES = ("__torch_dispatch__", "_fn", "inner")
"""Python functions between an operation and a check of it: torch puts two around every __torch_dispatch__."""
REFERENCES_OF_A_SOLE_OWNER = 4
STORAGE_REFERENCES_OF_A_SOLE_OWNER = 2
"""What the use counts are, seen from __torch_dispatch__, of a gradient that only the engine holds (torch 2.13)."""


def _sums_gradients_in_place(old: Any, new: Any) -> bool:
    """True if on a device this `old + new` is `old.add_(new)`: the engine sums two gradients of one tensor.

    It does so in place if nothing else holds the first, but never for tensors of a subclass such as those without
    data: InputBuffer::accumulate in torch/csrc/autograd/input_buffer.cpp.
    """
    return (
        not torch.is_grad_enabled()
        and isinstance(old, torch.Tensor)
        and isinstance(new, torch.Tensor)
        and old.shape == new.shape
        and old._use_count() <= REFERENCES_OF_A_SOLE_OWNER  # type: ignore[attr-defined]  # torch's stubs lack it
        and torch._C._storage_Use_Count(old.untyped_storage()._cdata)
        <= STORAGE_REFERENCES_OF_A_SOLE_OWNER
        and _caller() == "_engine_run_backward"
    )


def _caller() -> str:
    """The Python function that ran the operation which is being dispatched, or called the engine that did."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_code.co_name in DISPATCH_FRAMES:
        frame = frame.f_back
    return frame.f_code.co_name if frame else ""
