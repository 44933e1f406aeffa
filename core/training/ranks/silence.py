"""Silence of a process: for how long it has given no sign of life, as far as its watcher ran.

A rank beats in a thread of its own, so that a long step, a compilation, an evaluation or a
checkpoint are no silence.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

SECONDS_WITHOUT_BEAT = 20.0
"""A rank without a heartbeat for this long hangs: its thread beats every second, in every
phase."""
SECONDS_OF_WORK = 600.0
"""Time for which a silent process may work: a library, such as one that loads from a slow disk,
may let no other thread run."""
LONGEST_LOOK = 2.0
"""A watcher that comes back later did not run itself: the whole job was suspended, or slept."""
LEAST_PROCESSOR_SECONDS = 0.2


@dataclass
class Silence:
    """Time since the last sign of life of a process."""

    pid: int = 0
    """Process whose work counts; 0 for one of another machine."""
    seconds: float = 0.0
    _seconds_of_work: float = 0.0
    _work: tuple[float, float] | None = None
    _looked_at: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Note a sign of life."""
        self.seconds, self._seconds_of_work, self._work = 0.0, 0.0, None
        self._looked_at = time.monotonic()

    def grow(self) -> None:
        """Add the time since the last look. To be called several times a second."""
        now = time.monotonic()
        self.seconds += min(now - self._looked_at, LONGEST_LOOK)
        self._looked_at = now
        half = SECONDS_WITHOUT_BEAT / 2
        if not self.pid or self.seconds < half:
            return
        if self._work is None:
            self._work = work_of(self.pid)
        if self.is_too_long and self._seconds_of_work < SECONDS_OF_WORK:
            work = work_of(self.pid)
            if _has_worked(self._work, work):
                self._seconds_of_work += half
                self.seconds, self._work = half, work

    @property
    def is_too_long(self) -> bool:
        """True if the process hangs."""
        return self.seconds >= SECONDS_WITHOUT_BEAT


def work_of(pid: int) -> tuple[float, float]:
    """Return the processor seconds of a process, and the bytes that it has read and written."""
    seconds, num_bytes = 0.0, 0.0
    with suppress(psutil.Error, AttributeError):  # some systems count no bytes
        process = psutil.Process(pid)
        times = process.cpu_times()
        seconds = times.user + times.system
        counters = process.io_counters()
        num_bytes = float(counters.read_bytes + counters.write_bytes)
    return seconds, num_bytes


def _has_worked(before: tuple[float, float], after: tuple[float, float]) -> bool:
    return after[0] - before[0] >= LEAST_PROCESSOR_SECONDS or after[1] > before[1]
