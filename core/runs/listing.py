"""List all runs of a home. An unchanged run is not read again, so that the list is cheap to poll.

The modification time of a folder says that a file in it was created or replaced. Code that changes
a run in another way calls `Home.touch`.
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from core.job import JobSpec, RunNotFound, SpecError
from core.resolve import reference_of
from core.runs.home import Home, Schedule, read_schedule
from core.runs.run import Run, read

CLOCK_RESOLUTION_NS = 2_000_000_000
"""Some file systems store times in steps of 2 s. A second change within a step is invisible."""


@dataclass(frozen=True)
class Entry:
    """Content of one folder."""

    run: Run | None
    """None if the folder holds no run."""
    changed_ns: int
    """Modification time of the folder before it was read."""
    is_settled: bool
    """True if it stays valid until the folder changes."""


class Listing:
    """All runs of a home, as one process knows them."""

    def __init__(self, home: Home):
        self.home = home
        self.num_changes = 0
        """Number of times that the list has changed."""
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._times: dict[str, int] = {}
        """Name of each folder -> modification time."""
        self._scanned_ns = -1
        """Modification time of the folder of all runs before its scan."""
        self._is_scan_settled = False
        self._shown: tuple[object, ...] = ()
        self._sorted: tuple[Run, ...] = ()

    def refresh(self) -> tuple[Run, ...]:
        """Return every readable run, the newest first. An unchanged list is the same object."""
        with self._lock:
            schedule = read_schedule(self.home)
            if self._rescan():
                self._entries = {name: self._read(name, schedule) for name in self._times}
            else:
                for name, entry in self._entries.items():
                    if not entry.is_settled or name in schedule.run_ids:
                        self._entries[name] = self._read(name, schedule)
            runs = [entry.run for entry in self._entries.values() if entry.run]
            if (*schedule.waiting, *runs) != self._shown:
                self.num_changes += 1
                self._shown = (*schedule.waiting, *runs)
                runs.sort(key=lambda run: (run.created, run.id), reverse=True)
                self._sorted = tuple(runs)
            return self._sorted

    def _rescan(self) -> bool:
        """Read the modification times of all folders, if one was added or removed since.

        Return whether that was so.
        """
        changed_ns = self.home.runs.stat().st_mtime_ns
        if changed_ns == self._scanned_ns and self._is_scan_settled:
            return False
        self._scanned_ns, self._is_scan_settled = changed_ns, _is_settled(changed_ns)
        with os.scandir(self.home.runs) as folders:
            visible = [folder for folder in folders if not folder.name.startswith(".")]
        self._times = {folder.name: _changed_ns(folder) for folder in visible}
        return True

    def _read(self, name: str, schedule: Schedule) -> Entry:
        """Return the content of a folder. Read it only if it may have changed."""
        entry, changed_ns = self._entries.get(name), self._times[name]
        is_unchanged = entry and entry.is_settled and entry.changed_ns == changed_ns
        if entry and is_unchanged and name not in schedule.run_ids:
            return entry
        try:
            run = read(self.home, name, schedule)
        except (RunNotFound, SpecError, OSError):
            run = None  # not a run, or one that is being removed
        has_ended = run is None or not run.is_active
        return Entry(run, changed_ns, has_ended and _is_settled(changed_ns))


def list_runs(home: Home) -> tuple[Run, ...]:
    """Return every readable run, the newest first. An unchanged list is the same object."""
    return _listing(home).refresh()


def unreadable(home: Home) -> Mapping[str, str]:
    """Return the runs that the list leaves out, and why: a job that is damaged or too new."""
    listed = {run.id for run in list_runs(home)}
    reasons = {}
    for job_file in sorted(home.runs.glob("*/job.json")):
        run_id = job_file.parent.name
        if run_id not in listed:
            with suppress(RunNotFound):
                try:
                    read(home, run_id)
                except SpecError as error:
                    reasons[run_id] = _why_unreadable(error)
    return reasons


def list_fingerprint(home: Home) -> str:
    """Return a text that changes when the list does. Does not look into folders of ended runs."""
    listing = _listing(home)
    listing.refresh()
    return f"{os.getpid()}:{listing.num_changes}"


def search(runs: Iterable[Run], words: str) -> tuple[Run, ...]:
    """Return the runs whose text (id, title, notes, tags, job and state) contains every word."""
    wanted = words.casefold().split()
    if not wanted:
        return tuple(runs)
    return tuple(run for run in runs if all(word in _text_of(run) for word in wanted))


def _why_unreadable(error: SpecError) -> str:
    """Return why a job cannot be read, as users see it."""
    fields = [each.field for each in error.problems]
    if any(name in JobSpec.model_fields or name == "job file" for name in fields):
        return str(error.problems[0])
    return f"it is of a newer version of Tailor, which added {', '.join(fields)}"


@cache
def _listing(home: Home) -> Listing:
    return Listing(home)


def _text_of(run: Run) -> str:
    job, about = run.job, run.about
    job_texts = (reference_of(job.model), job.dataset, job.stage, job.method)
    texts = (run.id, run.state, *job_texts, about.title, about.notes, *about.tags)
    return "\n".join(texts).casefold()


def _changed_ns(folder: "os.DirEntry[str]") -> int:
    try:
        return folder.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return -1  # removed in the meantime


def _is_settled(changed_ns: int) -> bool:
    """Return True if a further change would give another modification time."""
    return abs(time.time_ns() - changed_ns) > CLOCK_RESOLUTION_NS
