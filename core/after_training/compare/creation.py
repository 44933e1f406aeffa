"""Create the runs of a comparison one by one, within its budget."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from core.after_training.compare import record
from core.after_training.compare.record import Comparison, Trial, runs_of, save
from core.job import SpecError
from core.resolve import ResolvedJob, resolve
from core.runs import Home, Run, create, queue
from core.runs.past_runs import forecast
from core.wording import duration


def kept(home: Home, comparison: Comparison, place: int, trial: Trial) -> Comparison:
    """Save a trial, and queue its run if it has one that trains here."""
    comparison = comparison.with_trial(place, trial)
    save(home, comparison)  # at once: a program that dies here creates no run twice
    run = record.run_of(home, trial)
    if run and comparison.placement.is_here:
        queue.submit(home, run)
    return comparison


def has_room(home: Home, comparison: Comparison) -> bool:
    """Return True if fewer runs of a comparison train or wait than may at once."""
    num_active = sum(run.is_active for run in runs_of(home, comparison))
    return num_active < comparison.most_at_once


def beyond_budget(home: Home, comparison: Comparison) -> str:
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


def created(home: Home, trial: Trial) -> Trial:
    """Return a trial with its run, or left out if no run can be created."""
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
    return resolve(trial.fields, rows=trial.rows)
