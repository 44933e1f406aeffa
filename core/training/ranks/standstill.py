"""Standstill of a rank: its process beats, but its main thread gets no further.

Each rank judges itself, in the thread that beats. It cannot know whether it is the cause or waits
for another rank; `stuck` finds that out, once all ranks stand still. Never imports torch.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from .marks import Marks
from .silence import LONGEST_LOOK

SECONDS_BEFORE_LOOK = 10.0
"""Time without a mark after which the work of the main thread is looked at."""
MOST_SECONDS = 3300.0
"""Time without a mark that no work excuses: soon the process group would give up by itself
(agreement.MINUTES_TO_WAIT), and name a rank that only waited."""
LEAST_SHARE = 0.1
"""Share of a processor from which on a thread works."""
LOOKS, SECONDS_BETWEEN_LOOKS = 20, 0.01
"""Looks at where the main thread stands. Many, as one that generates waits for the GPU most of the
time, at one place."""
WAITS_IN = ("torch/distributed/", "ranks/agreement.py")
"""Files of functions that wait for other ranks."""
WAITS_INNERMOST_IN = ("torch/autograd/graph.py", "torch/nn/parallel/distributed.py")
"""Files that call backward passes and collectives of DDP without any further Python."""
FRAMES_OF_WAITING = 4
LIBRARY = Path(os.__file__).parent


class Standstill:
    """Watch over the main thread of this process.

    A thread at work stands still for no limit that is measured in seconds: `_works` looks for work
    in its Python, in its processor time, and in that of its children.
    """

    def __init__(self, marks: Marks):
        self._marks = marks
        self.words: Mapping[str, Any] | None = None
        """What the others are told while the main thread stands still; None while it does not."""
        self._thread = threading.main_thread().ident or 0
        self._count = -1
        self._seconds = self._idle_seconds = 0.0
        self._looked_at = time.monotonic()
        self._stack: object = None
        self._used = 0.0

    def look(self) -> None:
        """Look whether the main thread gets on. To be called every second."""
        self._marks.clock.look()
        now = time.monotonic()
        elapsed = now - self._looked_at
        self._looked_at = now
        if self._marks.count != self._count:
            self._count, self.words = self._marks.count, None
            self._seconds = self._idle_seconds = 0.0
            self._stack = None
            return
        # A longer look means that this process was suspended itself.
        self._seconds += min(elapsed, LONGEST_LOOK)
        self._idle_seconds += min(elapsed, LONGEST_LOOK)
        if self._seconds >= SECONDS_BEFORE_LOOK and self._works(elapsed):
            self._idle_seconds = 0.0
        is_still = self._idle_seconds >= self._marks.limit or self._seconds >= MOST_SECONDS
        if not is_still:
            self.words = None
        elif self.words is None:
            self.words = self._describe()

    def _works(self, elapsed: float) -> bool:
        """Return True if something has happened since the last look.

        Python that moves is work on any device. Time of the processor is work on a CPU only, where
        gloo waits asleep. NCCL's `wait` does not wait: it queues a wait on the GPU and returns
        (WorkNCCL in ProcessGroupNCCL.hpp). The thread stops where it next reads a number of the
        GPU, and there CUDA by default asks again and again (cudaDeviceScheduleAuto): a thread that
        waits for ever uses a whole processor. A thread that waits for a disk, such as a network
        disk that is away, is told apart by the system. Children compile kernels or read rows.
        """
        stack, used = self._stack, self._used
        self._stack = self._where()
        has_moved = stack not in (None, self._stack) or any(map(self._moves, range(LOOKS)))
        self._used = self._processor_seconds()
        states = {psutil.STATUS_DISK_SLEEP}
        if not _uses_gpu():
            states.add(psutil.STATUS_RUNNING)
        is_busy = stack is not None and self._used - used >= LEAST_SHARE * elapsed
        return has_moved or is_busy or psutil.Process().status() in states

    def _moves(self, _look: int) -> bool:
        """Return True if the main thread does not stay at its place for a moment."""
        time.sleep(SECONDS_BETWEEN_LOOKS)
        return self._where() != self._stack

    def _where(self) -> object:
        """Return a value that tells two places of the main thread apart, of all its functions."""
        frame = self._frame()
        found = []
        while frame:
            found.append((id(frame.f_code), frame.f_lasti))
            frame = frame.f_back
        return found

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._thread)

    def _processor_seconds(self) -> float:
        """Return the time of the children of this process, and without a GPU of the main thread."""
        seconds = 0.0 if _uses_gpu() else self._own_processor_seconds()
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                times = child.cpu_times()
                seconds += times.user + times.system
        return seconds

    def _own_processor_seconds(self) -> float:
        if sys.platform != "linux":  # no clock of one thread
            return time.process_time()
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread))

    def _describe(self) -> Mapping[str, Any]:
        """Return where the main thread stands, and print all its functions to the log."""
        stack = traceback.extract_stack(self._frame())
        marks = self._marks
        said = f"No progress for {self._seconds:.0f} s. The main thread stands here:\n"
        with suppress(OSError):  # past the buffer of stderr, which the main thread may hold
            os.write(sys.stderr.fileno(), (said + "".join(stack.format())).encode())
        return {
            "seconds": round(self._seconds),
            "parts": marks.parts,
            "activity": marks.activity or marks.phase,
            "place": place_of(stack),
            "waits": waits(stack),
        }


def place_of(stack: traceback.StackSummary) -> str:
    """Return the innermost line of a stack that is not of Python's own library."""
    own = [each for each in stack if not _is_of_library(each.filename)] or list(stack)
    if not own:
        return "an unknown place"
    return f"line {own[-1].lineno} of {Path(own[-1].filename).name}"


def waits(stack: traceback.StackSummary) -> bool:
    """Return True for a stack of a thread that waits for other ranks."""
    names = [Path(each.filename).as_posix() for each in stack[-FRAMES_OF_WAITING:]]
    is_innermost = bool(names) and names[-1].endswith(WAITS_INNERMOST_IN)
    return is_innermost or any(part in name for name in names for part in WAITS_IN)


def _is_of_library(name: str) -> bool:
    return Path(name).is_relative_to(LIBRARY) and "site-packages" not in name


def _uses_gpu() -> bool:
    torch = sys.modules.get("torch")  # half of it while it is being imported
    is_initialized = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    return bool(is_initialized and is_initialized())
