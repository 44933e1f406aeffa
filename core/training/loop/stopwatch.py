"""Where the time of a step goes: data, forward, backward, optimizer step. Never makes a GPU wait.

On a GPU the host runs ahead of the work, so the boundaries are events among the work, read once they have passed:
what an activity takes is then the GPU's time, and that of `data` is how long the GPU waited for it.
"""

import time
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import torch

Mark = TypeVar("Mark")
ACTIVITIES = {
    "data": "data_seconds",
    "generation": "generation_seconds",
    "forward": "forward_seconds",
    "backward": "backward_seconds",
    "optimizer_step": "optimizer_seconds",
}
"""Activity -> its name in metrics.jsonl."""
USUAL = frozenset(ACTIVITIES) - {"generation"}
"""What every stage does."""


class Clock(Protocol[Mark]):
    """Marks moments, and tells the seconds between them."""

    def now(self) -> Mark:
        """A mark in the work so far."""

    def has_passed(self, mark: Mark) -> bool:
        """True once the work before the mark is done."""

    def seconds(self, start: Mark, end: Mark) -> float:
        """Between two marks that have passed."""


class HostClock:
    """Where work is done when its call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def has_passed(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Where work is queued."""

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def has_passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000


class Stopwatch(Generic[Mark]):
    """Seconds by activity since the last lap."""

    def __init__(self, clock: Clock[Mark]):
        self._clock = clock
        self._marks: deque[tuple[str | None, Mark]] = deque()
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)

    def begin(self, activity: str | None) -> None:
        """An activity begins and the one before ends; None is whatever has no name."""
        self._marks.append((activity, self._clock.now()))
        self._take_in()

    def lap(self, seconds: float, num_steps: int) -> dict[str, float]:
        """Seconds per optimizer step, named as in metrics.jsonl, of `num_steps` steps that took `seconds` in all."""
        self._take_in()
        named = {
            ACTIVITIES[activity]: spent
            for activity, spent in self._seconds.items()
            if spent or activity in USUAL
        }
        named["other_seconds"] = max(0.0, seconds - sum(named.values()))
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        return {name: spent / max(1, num_steps) for name, spent in named.items()}

    def _take_in(self) -> None:
        while len(self._marks) > 1 and self._clock.has_passed(self._marks[1][1]):
            activity, start = self._marks.popleft()
            if activity in self._seconds:
                self._seconds[activity] += self._clock.seconds(start, self._marks[0][1])


def stopwatch_here() -> Stopwatch[Any]:
    """The stopwatch of the device that trains."""
    return Stopwatch(CudaClock()) if torch.cuda.is_available() else Stopwatch(HostClock())
