"""Time of each part of a step: data, generation, forward, backward, optimizer step. Never makes a
GPU wait.

On a GPU the host queues work ahead, so boundaries are CUDA events that are read once they have
passed. The time of an activity is then the GPU's, and that of `data` is how long the GPU waited for
it.
"""

import time
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import torch

Mark = TypeVar("Mark")
SECONDS_NAMES = {
    "data": "data_seconds",
    "generation": "generation_seconds",
    "forward": "forward_seconds",
    "backward": "backward_seconds",
    "optimizer_step": "optimizer_seconds",
}
"""Activity -> its name in metrics.jsonl."""
ALWAYS_SHOWN = frozenset(SECONDS_NAMES) - {"generation"}


class Clock(Protocol[Mark]):
    """Marks in the work of a device, and the seconds between them."""

    def now(self) -> Mark:
        """Return a mark after the work so far."""

    def has_passed(self, mark: Mark) -> bool:
        """Return True once the work before the mark is done."""

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two marks that have passed."""


class HostClock:
    """Clock of the CPU, where work is done when its call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def has_passed(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Clock of a GPU, where work is queued."""

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
        """(activity that begins, its mark), oldest first."""
        self._seconds = dict.fromkeys(SECONDS_NAMES, 0.0)

    def begin(self, activity: str | None) -> None:
        """Begin an activity; the one before ends. None is everything else."""
        self._marks.append((activity, self._clock.now()))
        self._read_passed_marks()

    def lap(self, seconds: float, num_steps: int) -> dict[str, float]:
        """Return seconds per optimizer step, named as in metrics.jsonl, for `num_steps` steps of
        `seconds` in all."""
        self._read_passed_marks()
        total = {
            SECONDS_NAMES[activity]: spent
            for activity, spent in self._seconds.items()
            if spent or activity in ALWAYS_SHOWN
        }
        total["other_seconds"] = max(0.0, seconds - sum(total.values()))
        self._seconds = dict.fromkeys(SECONDS_NAMES, 0.0)
        return {name: spent / max(1, num_steps) for name, spent in total.items()}

    def _read_passed_marks(self) -> None:
        while len(self._marks) > 1 and self._clock.has_passed(self._marks[1][1]):
            activity, start = self._marks.popleft()
            if activity in self._seconds:
                self._seconds[activity] += self._clock.seconds(start, self._marks[0][1])


def stopwatch_of_device() -> Stopwatch[Any]:
    """Return the stopwatch of the device that trains."""
    return Stopwatch(CudaClock()) if torch.cuda.is_available() else Stopwatch(HostClock())
