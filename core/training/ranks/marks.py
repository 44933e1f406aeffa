"""Marks that a rank leaves as its work gets on, and how long it may take from one to the next.

The main thread leaves them; the thread that beats reads them. Never imports torch.
"""

import time
from dataclasses import dataclass

from .silence import LONGEST_LOOK

SECONDS_UNMEASURED = 1800.0
"""Time without a mark where nothing was measured: loading, compiling, the first steps, saving."""
LEAST_SECONDS = 30.0
TIMES_LONGEST = 10
"""A gap between two marks is too long at this many times the longest one of its phase."""
MEASURED_PHASES = frozenset({"train", "eval"})
"""Phases of many parts that are alike. A checkpoint may find the disk as slow as it likes."""
FEWEST_GAPS = 20
"""Gaps of a phase that are measured before a limit follows from them: those of some steps. As many
before them are not, because the first steps also divide the model, compile and reserve memory."""


@dataclass
class Gaps:
    """Times between the marks of one phase."""

    count: int = 0
    longest_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add a gap. The first ones are only counted."""
        self.count += 1
        if self.count > FEWEST_GAPS:
            self.longest_seconds = max(self.longest_seconds, seconds)

    @property
    def limit(self) -> float:
        """Seconds that a gap may take."""
        if self.count < 2 * FEWEST_GAPS:
            return SECONDS_UNMEASURED
        return max(LEAST_SECONDS, TIMES_LONGEST * self.longest_seconds)


class RunningTime:
    """Clock that stands still while this process is suspended.

    It is to be looked at every second: a thread that comes back later did not run in between. Only
    one thread looks, so that others read the clock without a lock.
    """

    def __init__(self) -> None:
        self._last_look: tuple[float, float] | None = None
        """Moment of the last look, and the seconds that were suspended before it."""

    def look(self) -> None:
        """Note that this process runs."""
        now = time.monotonic()
        self._last_look = now, now - self._running(now)

    def seconds(self) -> float:
        """Return the running time. Without any look nothing counts as suspended."""
        return self._running(time.monotonic())

    def _running(self, now: float) -> float:
        if self._last_look is None:
            return now
        looked_at, suspended = self._last_look
        return looked_at - suspended + min(now - looked_at, LONGEST_LOOK)


class Marks:
    """How far the main thread of a rank has come."""

    def __init__(self) -> None:
        self.count = 0
        """Marks of any kind, such as one for each row that was read."""
        self.parts = 0
        """Parts that were begun. All ranks go through the same ones: who has begun fewer is behind.
        """
        self.phase, self.activity = "import", ""
        self.clock = RunningTime()
        self._left_at = self.clock.seconds()
        self._gaps = {phase: Gaps() for phase in MEASURED_PHASES}

    def begin(self, phase: str, activity: str = "") -> None:
        """Begin a part of the work, such as a forward pass."""
        self.add()
        self.parts += 1
        self.phase, self.activity = phase, activity

    def add(self) -> None:
        """Note that the work gets on within its part."""
        now = self.clock.seconds()
        if self.phase in self._gaps:
            self._gaps[self.phase].add(now - self._left_at)
        self._left_at = now
        self.count += 1

    @property
    def limit(self) -> float:
        """Seconds that the work may take from the last mark to the next."""
        gaps = self._gaps.get(self.phase)
        return gaps.limit if gaps else SECONDS_UNMEASURED
