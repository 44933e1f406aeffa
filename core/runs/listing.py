"""The list of all runs, kept in memory: what has ended is parsed once, and a look at an unchanged home costs little.

A folder's time of change is the sign that something in it was replaced. Who changes a run that other processes may take
for settled calls `Home.touch`.
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from core.job import RunNotFound, SpecError
from core.resolve import reference_of
from core.runs.home import Home, Schedule, read_schedule
from core.runs.run import Run, read, read_with

COARSE_CLOCK_NS = 2_000_000_000
"""Some file systems tell times apart by two seconds only: what changed within them may change again unseen."""


@dataclass(frozen=True)
class Entry:
    """What was found in a folder."""

    run: Run | None
    """None for what is no run."""
    changed_ns: int
    """When the folder had changed last, before it was read."""
    is_settled: bool
    """True if nothing is to be expected before the folder changes again."""


class Listing:
    """All runs of a home, as one process knows them."""

    def __init__(self, home: Home):
        self.home = home
        self.num_changes = 0
        """Grows whenever the list shows something new."""
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._doubtful: set[str] = set()
        """Those that may change without a sign."""
        self._found: tuple[object, ...] = ()
        self._sorted: tuple[Run, ...] = ()
        self._times: dict[str, int] = {}
        """Name of each folder -> when it changed last."""
        self._scanned_ns, self._is_scan_settled = -1, False

    def look(self) -> tuple[Run, ...]:
        """Every readable run, the newest first; the same object as long as nothing changed."""
        with self._lock:
            schedule = read_schedule(self.home)
            is_new = self._scan()
            names = (
                self._times.keys()
                if is_new
                else self._times.keys() & (self._doubtful | schedule.named)
            )
            news = {name: self._entry(name, self._times[name], schedule) for name in names}
            self._entries = news if is_new else self._entries | news
            self._doubtful = {name for name, entry in self._entries.items() if not entry.is_settled}
            found = [entry.run for entry in self._entries.values() if entry.run]
            if (*schedule.waiting, *found) != self._found:
                self.num_changes += 1
                self._found = (*schedule.waiting, *found)
                self._sorted = tuple(
                    sorted(found, key=lambda run: (run.created, run.id), reverse=True)
                )
            return self._sorted

    def _scan(self) -> bool:
        """Looks at the folders' times, if something was made or removed since. Returns whether it did."""
        changed_ns = self.home.runs.stat().st_mtime_ns
        if changed_ns == self._scanned_ns and self._is_scan_settled:
            return False
        self._scanned_ns, self._is_scan_settled = changed_ns, _is_long_ago(changed_ns)
        with os.scandir(self.home.runs) as folders:
            self._times = {
                each.name: _changed_ns(each) for each in folders if not each.name.startswith(".")
            }
        return True

    def _entry(self, name: str, changed_ns: int, schedule: Schedule) -> Entry:
        """What is in a folder; read again only if there may be news."""
        known = self._entries.get(name)
        if (
            known
            and known.is_settled
            and known.changed_ns == changed_ns
            and name not in schedule.named
        ):
            return known
        try:
            run = read_with(self.home, name, schedule)
        except (RunNotFound, SpecError, OSError):
            run = None  # not a run, or one that is just being removed
        is_ended = run is None or not run.is_active
        return Entry(run, changed_ns, is_ended and _is_long_ago(changed_ns))


def list_runs(home: Home) -> tuple[Run, ...]:
    """Every readable run, the newest first; the same object as long as nothing changed."""
    return _listing(home).look()


def unreadable(home: Home) -> Mapping[str, str]:
    """The runs that the list leaves out, and why: their jobs are damaged, or of another version."""
    listed = {run.id for run in list_runs(home)}
    found = {}
    for folder in sorted(home.runs.glob("*/job.json")):
        run_id = folder.parent.name
        with suppress(RunNotFound):
            try:
                if run_id not in listed:
                    read(home, run_id)
            except SpecError as error:
                found[run_id] = str(error.problems[0])
    return found


def list_fingerprint(home: Home) -> str:
    """Changes whenever the list has something new to show; does not look into the folders of ended runs."""
    listing = _listing(home)
    listing.look()
    return f"{os.getpid()}:{listing.num_changes}"


def search(runs: Iterable[Run], words: str) -> tuple[Run, ...]:
    """The runs in whose id, title, notes, tags, state, model, data, stage or method every word occurs."""
    wanted = words.casefold().split()
    return (
        tuple(run for run in runs if all(word in _text(run) for word in wanted))
        if wanted
        else tuple(runs)
    )


@cache
def _listing(home: Home) -> Listing:
    return Listing(home)


def _text(run: Run) -> str:
    job, about = run.job, run.about
    parts = (
        run.id,
        run.state,
        reference_of(job.model),
        job.dataset,
        job.stage,
        job.method,
        about.title,
        about.notes,
    )
    return "\n".join((*parts, *about.tags)).casefold()


def _changed_ns(folder: "os.DirEntry[str]") -> int:
    try:
        return folder.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return -1  # removed meanwhile


def _is_long_ago(changed_ns: int) -> bool:
    return abs(time.time_ns() - changed_ns) > COARSE_CLOCK_NS
