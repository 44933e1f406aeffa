"""Home folder of runs, uploads and deleted runs, and the schedule: which run has which device."""

import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.dataset.intake import TEXT_SUFFIXES
from core.job import Problem, SpecError
from core.runs.files import read_json
from core.runs.tasks import Task
from core.training.contract.files import sha256_of, write_json

SECONDS_TO_LOCK = 30
ROOT = 0
MAX_NAME_CHARACTERS = 50


@dataclass(frozen=True)
class Home:
    """Folder where runs and uploads live."""

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
        """Return the home at `path`, else at TAILOR_HOME, else at ~/.tailor. Create it if missing.

        Raises SpecError if it cannot be created.
        """
        chosen = Path(path or os.environ.get("TAILOR_HOME") or "~/.tailor")
        try:
            home = cls(chosen.expanduser().absolute())
            for folder in (home.path, home.runs, home.uploads):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
            problem = f"{chosen} cannot be created: {getattr(error, 'strerror', error)}"
            fix = "choose a folder that you can write to"
            raise SpecError(Problem("home", problem, fix)) from None
        require_own(home.path)
        require_locks(home.path)
        return home

    @property
    def other_owner(self) -> str:
        """Account that the home belongs to, "" if it is this one; a number if it has no name."""
        if os.name != "posix" or self.path.stat().st_uid == os.geteuid():
            return ""
        import pwd

        owner = self.path.stat().st_uid
        try:
            return pwd.getpwuid(owner).pw_name
        except KeyError:  # an account of another system, such as outside of a container
            return str(owner)

    def keep(self, file: Path, suffix: str) -> Path:
        """Move an uploaded file to a place named by its content, so that it is kept once.

        Raises OSError.
        """
        # Letters of every script stay; composed, one takes at most 4 of the 255 bytes of a name.
        letters = unicodedata.normalize("NFC", file.stem)
        name = re.sub(r"[^\w.-]+", "-", letters)[:MAX_NAME_CHARACTERS].strip(".-")
        place = self.uploads / sha256_of(file)[:12] / f"{name or 'data'}{suffix}"
        place.parent.mkdir(exist_ok=True)
        shutil.move(file, place)
        return place

    def new_upload_folder(self) -> Path:
        """Create a folder for what is made of a file. Raises OSError."""
        folder = self.uploads / secrets.token_hex(6)
        folder.mkdir()
        return folder

    def kept_rows(self, at_most: int) -> tuple[Path, ...]:
        """Return the kept files that hold rows, the newest first."""
        suffixes = (".jsonl", *TEXT_SUFFIXES)
        files = [path for path in self.uploads.glob("*/*") if path.suffix in suffixes]
        files = [path for path in files if path.is_file()]
        files.sort(key=lambda path: (path.stat().st_mtime, path), reverse=True)
        return tuple(files[:at_most])

    def touch(self) -> None:
        """Tell every process that lists the runs that a file in some run's folder has changed."""
        os.utime(self.runs)


def require_own(folder: Path) -> None:
    """Raise SpecError if other accounts could put runs into a home: their programs would be ours.

    Root may use the home of one other account, as a container does whose folder is mounted from
    outside. Windows does not say in this way who may write.
    """
    if os.name != "posix":
        return
    info = folder.stat()
    account = os.geteuid()
    if info.st_uid != account and account != ROOT:
        fix = "choose a folder of your own"
        raise SpecError(Problem("home", f"{folder} belongs to another account", fix))
    is_shared = info.st_mode & stat.S_IWGRP and not _is_private_group(info.st_gid, info.st_uid)
    if is_shared or info.st_mode & stat.S_IWOTH:
        fix = f"run `chmod 700 {folder}`, or choose another folder"
        raise SpecError(Problem("home", f"other accounts may write to {folder}", fix))


def _is_private_group(gid: int, owner: int) -> bool:
    """Return True for the group that many systems make for each account alone."""
    import grp
    import pwd

    try:
        return grp.getgrgid(gid).gr_name == pwd.getpwuid(owner).pw_name
    except KeyError:
        return False


def require_locks(folder: Path) -> None:
    """Raise SpecError if files in a folder cannot be locked: two programs could start one run."""
    if os.name != "posix":
        return
    import fcntl

    try:
        with (folder / "queue.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # another program holds it
    except OSError as error:
        problem = f"the file system of {folder} has no locks: {error.strerror}"
        fix = "choose a folder on another disk, such as a local one"
        raise SpecError(Problem("home", problem, fix)) from None


@dataclass(frozen=True)
class Schedule:
    """Content of queue.json."""

    waiting: tuple[str, ...] = ()
    """Ids of the waiting runs, the next first."""
    devices: Mapping[str, str] = field(default_factory=dict)
    """Index of a device -> id of the run that it was given to last."""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    """Index of a device -> what holds it and is no run."""
    submitted: tuple[str, ...] = ()
    """Ids of the runs that were sent to a cluster and are not known to have ended."""

    @cached_property
    def run_ids(self) -> frozenset[str]:
        return frozenset((*self.waiting, *self.devices.values(), *self.submitted))


def read_schedule(home: Home) -> Schedule:
    """Return the schedule in queue.json, an empty one if there is none."""
    fields = read_json(home.path / "queue.json")
    waiting, devices = fields.get("waiting", ()), fields.get("devices", {})
    submitted = fields.get("submitted", [])
    if not isinstance(waiting, list) or not isinstance(devices, dict):
        return Schedule()
    read_tasks = {key: Task.from_json(value) for key, value in _tasks_in(fields).items()}
    return Schedule(
        waiting=tuple(map(str, waiting)),
        devices={key: str(value) for key, value in devices.items()},
        tasks={key: task for key, task in read_tasks.items() if task},
        submitted=tuple(map(str, submitted)) if isinstance(submitted, list) else (),
    )


def write_schedule(home: Home, schedule: Schedule) -> None:
    """Replace queue.json. The caller must hold `locked(home)`."""
    fields: dict[str, object] = {"waiting": schedule.waiting, "devices": schedule.devices}
    if schedule.submitted:
        fields["submitted"] = schedule.submitted
    if schedule.tasks:
        fields["tasks"] = {device: task.to_json() for device, task in schedule.tasks.items()}
    write_json(home.path / "queue.json", fields)


@contextmanager
def locked(home: Home, seconds: float = SECONDS_TO_LOCK) -> Iterator[None]:
    """Keep other processes from starting, stopping, queueing or deleting runs.

    Raises SpecError if another process holds the lock for too long.
    """
    lock = FileLock(home.path / "queue.lock")
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        problem = f"another program has held {home.path / 'queue.lock'} for {seconds:g} s"
        fix = "try again, or close the other program"
        raise SpecError(Problem("queue", problem, fix)) from None
    try:
        yield
    finally:
        lock.release()


def _tasks_in(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    tasks = fields.get("tasks")
    if isinstance(tasks, dict):
        return tasks
    return {}
