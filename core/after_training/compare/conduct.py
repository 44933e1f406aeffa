"""Conduct a comparison: create its runs, queue, stop and continue them. Never waits.

The queue starts the runs one after the other on each device. Any process that calls `advance`,
such as the page, carries a comparison on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean

from filelock import FileLock, Timeout

from core.after_training.compare import record
from core.after_training.compare.record import Comparison, Trial, runs_of, save
from core.device import this_machine
from core.job import Problem, SpecError
from core.resolve import ResolvedJob, resolve
from core.runs import Home, Run, create, launch, queue
from core.runs.past_runs import forecast
from core.wording import duration

SECONDS_TO_LOCK = 20.0


def start(home: Home, comparison: Comparison) -> Comparison:
    """Open a comparison: create the runs that are missing and queue those that have not ended.

    A run that cannot be created is left out with the reason. Runs that failed, or that a person
    has stopped one by one, stay as they are. Raises SpecError if the queue is locked.
    """
    with locked(home):
        comparison = replace(record.read_comparison(home, comparison.id), is_open=True, note="")
        save(home, comparison)  # a program that dies from here on leaves it to the others
        for run in runs_of(home, comparison):
            if _may_go_on(comparison, run):
                queue.submit(home, run)
        comparison = replace(comparison, stopped=())
        save(home, comparison)
        return _advance(home, comparison)


def advance(home: Home, comparison: Comparison) -> Comparison:
    """Do what is due in an open comparison, and close it once all its runs have ended.

    Does nothing while another process does it. Raises SpecError if the queue is locked.
    """
    try:
        with locked(home, seconds=0):
            comparison = record.read_comparison(home, comparison.id)
            if comparison.is_open:
                return _advance(home, comparison)
    except Timeout:
        pass
    return comparison


def stop(home: Home, comparison: Comparison) -> Comparison:
    """Stop every run that is active, with a checkpoint, and take the others out of the queue."""
    with locked(home):
        comparison = record.read_comparison(home, comparison.id)
        # the waiting ones first, so that none of them starts when the running one ends
        active = [run for run in runs_of(home, comparison) if run.is_active]
        active.sort(key=lambda run: run.state != "queued")
        names = tuple(dict.fromkeys((*comparison.stopped, *(run.id for run in active))))
        comparison = replace(comparison, stopped=names, is_open=False)
        save(home, comparison)
        for run in active:
            launch.request_stop(run)
        return comparison


def is_active(home: Home, comparison: Comparison) -> bool:
    """Return True while a run of a comparison trains or waits, or has still to be created."""
    return comparison.is_open or any(run.is_active for run in runs_of(home, comparison))


@contextmanager
def locked(home: Home, seconds: float = SECONDS_TO_LOCK) -> Iterator[None]:
    """Keep other processes from conducting comparisons. Raises SpecError, or Timeout at once if
    `seconds` is 0."""
    folder = record.folder_of(home)
    try:
        with FileLock(folder / "lock").acquire(timeout=seconds):
            yield
    except Timeout:
        if not seconds:
            raise
        problem = f"another program has changed comparisons for {seconds:g} s"
        raise SpecError(Problem("comparison", problem, "try again")) from None


def _advance(home: Home, comparison: Comparison) -> Comparison:
    """Create what may be created now, and close what has ended. The caller must hold the lock."""
    comparison = _create_missing(home, comparison)
    for run in runs_of(home, comparison):
        if _was_forgotten(run):
            queue.submit(home, run)
    is_complete = all(each.id or each.left_out for each in comparison.trials)
    if is_complete and not any(run.is_active for run in runs_of(home, comparison)):
        comparison = replace(comparison, is_open=False)
        save(home, comparison)
    return comparison


def _may_go_on(comparison: Comparison, run: Run) -> bool:
    if run.state in ("interrupted", "queued"):
        return True
    if run.state == "stopped":
        return run.id in comparison.stopped
    return _was_forgotten(run)


def _was_forgotten(run: Run) -> bool:
    """Return True for a run whose creator died before it came into the queue."""
    was_never_started = not (run.folder / "process.json").exists()
    return was_never_started and run.state in ("starting", "failed")


def _create_missing(home: Home, comparison: Comparison) -> Comparison:
    """Create and queue the runs that are missing: all, or one for each device at a time if what
    they take decides how many there will be."""
    for place, trial in enumerate(comparison.trials):
        if trial.id or trial.left_out:
            continue
        if comparison.is_measured and not _has_free_device(home, comparison):
            break
        beyond = _beyond_budget(home, comparison)
        if beyond:
            trial = replace(trial, left_out=beyond, fix="raise the limit")
        else:
            trial = _created(home, trial)
        comparison = comparison.with_trial(place, trial)
        save(home, comparison)  # at once: a program that dies here creates no run twice
        if trial.id and (run := record.run_of(home, trial)):
            queue.submit(home, run)
    return comparison


def _has_free_device(home: Home, comparison: Comparison) -> bool:
    num_devices = max(1, len(this_machine().gpus))
    return sum(run.is_active for run in runs_of(home, comparison)) < num_devices


def _beyond_budget(home: Home, comparison: Comparison) -> str:
    """Return which limit one more run would exceed, "" for none.

    What runs have taken is counted. One that trains, and the next, are taken to be like those that
    have finished.
    """
    if not comparison.is_measured:
        return ""
    runs = runs_of(home, comparison)
    hours, usd = comparison.budget.max_hours, comparison.budget.max_usd
    if hours is not None:
        used, usual = _used(runs, [run.seconds for run in runs])
        if used >= 3600 * hours or used + usual > 3600 * hours:
            said = f"{duration(used)} used, a run takes {duration(usual)}"
            return f"beyond the budget of {hours:g} h: {said}"
    if usd is not None:
        used, usual = _used(runs, [run.usd or 0.0 for run in runs])
        if used >= usd or used + usual > usd:
            return f"beyond the budget of ${usd:g}: ${used:.2f} used, a run takes ${usual:.2f}"
    return ""


def _used(runs: Sequence[Run], taken: Sequence[float]) -> tuple[float, float]:
    """Return what all runs take, and what one takes, 0 before the first has finished."""
    pairs = list(zip(runs, taken, strict=True))
    finished = [each for run, each in pairs if run.state == "finished"]
    usual = fmean(finished) if finished else 0.0
    return sum(max(each, usual) if run.is_active else each for run, each in pairs), usual


def _created(home: Home, trial: Trial) -> Trial:
    try:
        resolved = resolved_of(trial)
        return replace(trial, id=create(home, resolved, forecast(home, resolved)).id)
    except SpecError as error:
        return replace(trial, left_out=error.reason, fix=error.problems[0].fix)
    except OSError as error:
        reason = f"could not be created: {error.strerror}"
        return replace(trial, left_out=reason, fix="free some space, then compare again")


def resolved_of(trial: Trial) -> ResolvedJob:
    """Return the job of a trial, which its profile has planned already. Raises SpecError."""
    return resolve(trial.fields)
