"""Runs of the fake program: the seeds that it understands, and waiting for what it does."""

import time
from collections.abc import Callable

from core import runs
from core.runs import Home, Run, launch, queue

CRASH_AT_STEP_3, DIE_SILENTLY, NEVER_END = 1001, 1002, 1003
KILLED, HANG, GRANDCHILDREN, TORN, DISK_FULL, NOT_A_NUMBER, SLOW_TO_SAVE, SLOW_TO_EXIT, DIVERGED = (
    range(1004, 1013)
)

NewRun = Callable[..., Run]


def start(home: Home, run: Run) -> Run:
    """The run, submitted, once it is no longer waiting for an earlier one to let go."""
    queue.submit(home, run)
    return advanced(home, run, lambda run: run.state != "queued")


def ended(home: Home, run: Run, seconds: float = 20) -> Run:
    """The run once its program has ended."""
    return launch.wait(home, run.id, seconds)


def stepping(home: Home, run: Run, step: int = 1) -> Run:
    """The run once it has made so many steps."""
    return eventually(
        lambda: runs.read(home, run.id), lambda run: run.step >= step or not run.is_active
    )


def advanced(home: Home, run: Run, is_so: Callable[[Run], bool]) -> Run:
    """The run, with the queue moving on, once it is so."""

    def look() -> Run:
        queue.advance(home)
        return runs.read(home, run.id)

    return eventually(look, is_so)


def eventually(look: Callable[[], Run], is_so: Callable[[Run], bool], seconds: float = 20) -> Run:
    """What is looked at, once it is so, or as it is when the time is over."""
    deadline = time.monotonic() + seconds
    while not is_so(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen
