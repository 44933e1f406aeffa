"""Check the finished runs of a comparison, one by one, once none of them trains any more.

A check needs the device that a training needs, and the queue gives that to the runs first.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from filelock import FileLock, Timeout

from core.after_training.compare import record
from core.after_training.compare.record import Comparison, Trial, locked, run_of
from core.job import ChildError, SpecError
from core.runs import Home, Run, queue
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.stages import STAGES

SECONDS_BETWEEN_LOOKS = 1.0
BYTES_OF_RESULTS = 2**20
"""Room for the answers to some hundred tests, and for the record."""
ON_CLUSTER = "it trained on a cluster: check-model checks it there"


def runs_to_check(home: Home, comparison: Comparison) -> tuple[Run, ...]:
    """Return the finished runs that have still to be checked; none while a run trains or waits."""
    return tuple(run for _trial, run in _to_check(home, comparison))


def check_next(
    home: Home, comparison: Comparison, is_cancelled: Callable[[], bool] | None = None
) -> Comparison:
    """Check the next run that has to be, and note how it went. Takes as long as a check takes.

    Does nothing while another process checks, while something else uses the device, and if the
    comparison is not open. Raises SpecError if its record cannot be read, OSError if it cannot be
    written.
    """
    try:
        with FileLock(record.folder_of(home) / "checks.lock").acquire(timeout=0):
            comparison = record.read_comparison(home, comparison.id)
            found = _to_check(home, comparison)
            if not found or not comparison.is_open:
                return comparison
            trial, run = found[0]
            _require_room(home)
            stopped = _Stopped(home, comparison.id, is_cancelled)
            with comparison.only_its_files():
                failed = _check(trial, run, stopped)
            if failed is None:
                return comparison
            return _note(home, comparison.id, run, failed)
    except Timeout:
        return comparison


def suites_of(trial: Trial, run: Run) -> tuple[Suite, ...]:
    """Return the suites that a job names for its training, else the usual ones of its run.

    A run that was checked while it trained has copies of them. Raises SpecError.
    """
    copied = run.fields_again()["check_suites"]
    named = str(copied or trial.fields.get("check_suites") or "").split(",")
    return checking.find_suites(run, [name.strip() for name in named if name.strip()])


def _to_check(home: Home, comparison: Comparison) -> list[tuple[Trial, Run]]:
    if not comparison.has_checks:
        return []
    found = [(trial, run_of(home, trial)) for trial in comparison.trials]
    if any(run and run.is_active for _trial, run in found):
        return []
    return [
        (trial, run)
        for trial, run in found
        if run and run.state == "finished" and run.id not in comparison.checked and _can_write(run)
    ]


def _can_write(run: Run) -> bool:
    return STAGES[run.job.stage].head != "score"


def _check(trial: Trial, run: Run, is_stopped: Callable[[], bool]) -> str | None:
    """Check a run. Return why it gave no results, "" if it has some, None to try again later."""
    if run.submission and not run.submission.placement.is_here:
        return ON_CLUSTER
    try:
        known = {(each.name, each.sha256) for each in run.checks_of_result}
        suites = suites_of(trial, run)
        missing = [each for each in suites if (each.name, each.sha256) not in known]
        if missing:
            checking.check(run, missing, is_cancelled=is_stopped)
    except ChildError as error:
        return None if error.cause == "cancelled" else checking.died_sentence(error)
    except queue.DeviceInUse:
        return None
    except SpecError as error:
        return error.reason
    except OSError as error:
        return f"The results cannot be kept: {error.strerror}"
    return ""


def _require_room(home: Home) -> None:
    """Raise OSError if the disk is full: no minutes are spent on what cannot be noted."""
    if shutil.disk_usage(home.path).free < BYTES_OF_RESULTS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home.path))


def _note(home: Home, comparison_id: str, run: Run, failed: str) -> Comparison:
    with locked(home):
        comparison = record.read_comparison(home, comparison_id)
        comparison = replace(comparison, checked={**comparison.checked, run.id: failed})
        record.save(home, comparison)
    return comparison


@dataclass
class _Stopped:
    """Function that returns True once a comparison was stopped, or the caller has cancelled."""

    home: Home
    comparison_id: str
    is_cancelled: Callable[[], bool] | None
    next_look: float = field(default_factory=time.monotonic)

    def __call__(self) -> bool:
        if self.is_cancelled and self.is_cancelled():
            return True
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        try:
            return not record.read_comparison(self.home, self.comparison_id).is_open
        except SpecError:  # deleted, or damaged
            return True
