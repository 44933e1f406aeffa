"""The home folder: where runs, uploads and deleted runs live, and which run waits for or has which device."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from core.job import Problem, SpecError
from core.runs.files import read_json
from core.training.contract.files import write_json

SECONDS_TO_LOCK = 30


@dataclass(frozen=True)
class Home:
    """Where runs and uploads live."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    @property
    def trash(self) -> Path:
        return self.path / "trash"

    @classmethod
    def find(cls, path: str | None = None) -> "Home":
        """The folder named, else TAILOR_HOME, else ~/.tailor; made if absent. Raises SpecError if it cannot be."""
        named = Path(path or os.environ.get("TAILOR_HOME") or "~/.tailor")
        try:
            home = cls(named.expanduser().absolute())
            for folder in (home.path, home.runs, home.uploads):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (
            OSError,
            RuntimeError,
        ) as error:  # the second for the home of a user who is not here
            reason = f"{named} cannot be made: {getattr(error, 'strerror', error)}"
            raise SpecError(
                Problem("home", reason, "name a folder that you can write to")
            ) from None
        return home

    def touch(self) -> None:
        """Says to every process that lists the runs that something within a run's folder has changed."""
        os.utime(self.runs)


@dataclass(frozen=True)
class Schedule:
    """Who waits, and who was given a device last; it is free once that run's program has ended."""

    waiting: tuple[str, ...] = ()
    """Run ids, the next first."""
    devices: Mapping[str, str] = field(default_factory=dict)
    """Index of a device -> run id."""

    @cached_property
    def named(self) -> frozenset[str]:
        """Every run that it names."""
        return frozenset((*self.waiting, *self.devices.values()))


def read_schedule(home: Home) -> Schedule:
    """The schedule as home/queue.json holds it; an empty one if there is none."""
    held = read_json(home.path / "queue.json")
    waiting, devices = held.get("waiting", ()), held.get("devices", {})
    if not isinstance(waiting, list) or not isinstance(devices, dict):
        return Schedule()
    return Schedule(
        tuple(map(str, waiting)), {str(device): str(run_id) for device, run_id in devices.items()}
    )


def write_schedule(home: Home, schedule: Schedule) -> None:
    """Replaces home/queue.json. Only for who holds `locked(home)`."""
    write_json(home.path / "queue.json", {"waiting": schedule.waiting, "devices": schedule.devices})


@contextmanager
def locked(home: Home, seconds: float = SECONDS_TO_LOCK) -> Iterator[None]:
    """Keeps every other process from starting, stopping, queueing or deleting runs meanwhile.

    Raises SpecError if one of them does not let go.
    """
    lock = FileLock(home.path / "queue.lock")
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        problem = f"another program has held {home.path / 'queue.lock'} for {seconds:g} s"
        raise SpecError(
            Problem("queue", problem, "try again, or close the other program")
        ) from None
    try:
        yield
    finally:
        lock.release()
