"""Conduct a comparison: create its runs, queue, stop and continue them. Never waits.

The queue starts the runs one after the other on each device. Any process that advances it, such as
the page, carries a comparison on.
"""

from dataclasses import replace

from core.after_training.compare.record import Comparison, Trial, runs_of, save
from core.job import SpecError
from core.resolve import ResolvedJob, resolve
from core.runs import Home, Run, create, launch, queue
from core.runs.past_runs import forecast


def start(home: Home, comparison: Comparison) -> Comparison:
    """Create the runs that are missing and queue those that have not ended.

    A run that cannot be created is left out with the reason. Runs that failed, or that a person
    has stopped one by one, stay as they are. Raises SpecError if the queue is locked.
    """
    comparison = _create_all(home, comparison)
    for run in runs_of(home, comparison):
        if _may_go_on(comparison, run):
            queue.submit(home, run)
    comparison = replace(comparison, stopped=())
    save(home, comparison)
    return comparison


def stop(home: Home, comparison: Comparison) -> Comparison:
    """Stop every run that is active, with a checkpoint, and take the others out of the queue."""
    # the waiting ones first, so that none of them starts when the running one ends
    active = [run for run in runs_of(home, comparison) if run.is_active]
    active.sort(key=lambda run: run.state != "queued")
    names = tuple(dict.fromkeys((*comparison.stopped, *(run.id for run in active))))
    comparison = replace(comparison, stopped=names)
    save(home, comparison)
    for run in active:
        launch.request_stop(run)
    return comparison


def is_active(home: Home, comparison: Comparison) -> bool:
    """Return True while a run of a comparison trains or waits."""
    return any(run.is_active for run in runs_of(home, comparison))


def _may_go_on(comparison: Comparison, run: Run) -> bool:
    was_never_started = not (run.folder / "process.json").exists()
    if run.state in ("interrupted", "queued"):
        return True
    if run.state == "stopped":
        return run.id in comparison.stopped
    return was_never_started and run.state in ("starting", "failed")


def _create_all(home: Home, comparison: Comparison) -> Comparison:
    for place, trial in enumerate(comparison.trials):
        if not trial.id and not trial.left_out:
            comparison = comparison.with_trial(place, _created(home, trial))
            save(home, comparison)  # at once: a program that dies here creates no run twice
    return comparison


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
