"""Conduct a comparison: create its runs, queue, stop and continue them. Never waits.

The queue starts the runs one after the other on each device. Any process that calls `advance`,
such as the page, carries a comparison on; `checking` checks its runs, `keeper` reports on it.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from filelock import Timeout

from core.after_training.compare import record
from core.after_training.compare.checking import runs_to_check
from core.after_training.compare.creation import beyond_budget, created, has_room, kept
from core.after_training.compare.on_cluster import submit_all, was_never_sent, was_not_taken
from core.after_training.compare.optimizer import INSTALL, is_installed, require_installed
from core.after_training.compare.record import Comparison, locked, runs_of, save
from core.after_training.compare.search import Search
from core.after_training.compare.searching import prune, search_on
from core.after_training.compare.study import Study
from core.job import Problem, SpecError
from core.runs import Home, Run, launch, queue
from core.runs.engines import ENGINES, Placement


def require_possible(home: Home, placement: Placement, asked: Study | Search) -> None:
    """Raise SpecError for a cluster that cannot have the runs of a comparison, which are not
    created yet."""
    if placement.is_here:
        return
    for number in asked.values_of_field("num_devices"):
        placement.require_devices(number)
    if not ENGINES[placement.engine].starts_programs:
        problem = f"{placement.title} cannot start the runs of a comparison"
        raise SpecError(Problem("on", problem, "choose slurm or ray"))
    queue.require_seen(home, placement)


def start(home: Home, comparison: Comparison) -> Comparison:
    """Open a comparison: create the runs that are missing and queue those that have not ended.

    A run that cannot be created is left out with the reason. Runs that failed, other than those
    that the cluster did not take, or that a person has stopped one by one, stay as they are. Raises
    SpecError if the queue is locked, or without the optimizer of a search.
    """
    if comparison.search is not None:
        require_installed()
    comparison = record.read_comparison(home, comparison.id)
    going_on = [run for run in runs_of(home, comparison) if _may_go_on(comparison, run)]
    _submit(home, comparison, going_on)  # before it is open, or others close what has ended
    with locked(home):
        before, comparison = comparison, record.read_comparison(home, comparison.id)
        if comparison.num_stops != before.num_stops:
            return comparison
        checked = {run.id: "" for run in runs_of(home, comparison) if _was_checked(comparison, run)}
        comparison = replace(comparison, is_open=True, is_reported=False, checked=checked, note="")
        # A program that dies from here on leaves it to the others.
        save(home, replace(comparison, stopped=()))
    return _do_what_is_due(home, comparison, record.SECONDS_TO_LOCK)


def advance(home: Home, comparison: Comparison) -> Comparison:
    """Do what is due in an open comparison, and close it once all its runs have ended and were
    checked.

    Does nothing while another process does it. Raises SpecError if the queue is locked.
    """
    try:
        return _do_what_is_due(home, comparison, seconds=0)
    except Timeout:
        return comparison


def _do_what_is_due(home: Home, comparison: Comparison, seconds: float) -> Comparison:
    """Do what `advance` does, once no other process does it. Raises SpecError, or Timeout at once
    if `seconds` is 0."""
    with locked(home, seconds):
        before = record.read_comparison(home, comparison.id)
        if not before.is_open:
            return before
        comparison, forgotten = _advance(home, before)
    # Without the lock, because a cluster may take long to answer
    _stop_pruned(home, comparison, {trial.id for trial in before.trials if trial.pruned})
    _submit(home, comparison, forgotten)
    return comparison


def stop(home: Home, comparison: Comparison) -> Comparison:
    """Stop every run that is active, with a checkpoint, and take the others out of the queue."""
    with locked(home):
        comparison = record.read_comparison(home, comparison.id)
        # the waiting ones first, so that none of them starts when the running one ends
        active = [run for run in runs_of(home, comparison) if run.is_active]
        active.sort(key=lambda run: run.state != "queued")
        pruned = {trial.id for trial in comparison.trials if trial.pruned}
        names = (*comparison.stopped, *(run.id for run in active if run.id not in pruned))
        names = tuple(dict.fromkeys(names))
        comparison = replace(
            comparison,
            stopped=names,
            num_stops=comparison.num_stops + 1,
            is_open=False,
            is_reported=False,
        )
        save(home, comparison)
    for run in active:
        launch.request_stop(run)
    return comparison


def is_active(home: Home, comparison: Comparison) -> bool:
    """Return True while a run of a comparison trains or waits, or has still to be created or
    checked."""
    return comparison.is_open or any(run.is_active for run in runs_of(home, comparison))


def _advance(home: Home, comparison: Comparison) -> tuple[Comparison, Sequence[Run]]:
    """Create what may be created now, and close what has ended. Return the runs that have still to
    be sent to a cluster or queued. The caller must hold the lock."""
    with comparison.only_its_files():
        comparison = _create_missing(home, comparison)
        if comparison.search is not None:
            if not is_installed():
                return _without_optimizer(home, comparison), ()
            comparison = search_on(home, prune(home, comparison))
    forgotten = [run for run in runs_of(home, comparison) if _was_forgotten(run)]
    is_complete = all(each.id or each.left_out for each in comparison.trials)
    is_training = forgotten or any(run.is_active for run in runs_of(home, comparison))
    has_trained = is_complete and not comparison.num_missing and not is_training
    if has_trained and not runs_to_check(home, comparison):
        comparison = replace(comparison, is_open=False, is_reported=False)
        save(home, comparison)
    return comparison, forgotten


def _stop_pruned(home: Home, comparison: Comparison, known: Collection[str]) -> None:
    """Stop the runs that were given up now. A person may have resumed those `known` before."""
    for trial in comparison.trials:
        if trial.pruned and trial.id not in known and (run := record.run_of(home, trial)):
            launch.request_stop(run, trial.pruned)


def _submit(home: Home, comparison: Comparison, runs: Sequence[Run]) -> None:
    """Queue runs, or send them to a cluster. The caller must not hold the lock.

    One that was stopped in the meantime has not stopped these, which had no job yet.
    Raises SpecError if the cluster refuses.
    """
    if not runs:
        return
    try:
        submit_all(home, comparison, runs)
    except SpecError as error:
        if comparison.search is not None and _were_refused(home, comparison, runs):
            _without_cluster(home, comparison, error.reason)
        raise
    if record.read_comparison(home, comparison.id).num_stops != comparison.num_stops:
        names = {run.id for run in runs}
        for run in runs_of(home, comparison):
            if run.id in names:
                launch.request_stop(run)


def _without_optimizer(home: Home, comparison: Comparison) -> Comparison:
    """Close a search that was begun where Optuna was installed."""
    note = f"The search cannot continue without Optuna: {INSTALL}"
    comparison = replace(comparison, is_open=False, is_reported=False, note=note)
    save(home, comparison)
    return comparison


def _were_refused(home: Home, comparison: Comparison, runs: Sequence[Run]) -> bool:
    """Return True if a cluster has refused a run. One that did not answer may be asked again."""
    names = {run.id for run in runs}
    now = [run for run in runs_of(home, comparison) if run.id in names]
    return any(run.state == "failed" and not _was_forgotten(run) for run in now)


def _without_cluster(home: Home, comparison: Comparison, reason: str) -> None:
    """Close a search whose cluster refuses a run: it would refuse all others within seconds."""
    again = f"python app.py compare --resume {comparison.id}"
    note = f"The search ended early. {reason}. To continue it: {again}"
    with locked(home):
        comparison = record.read_comparison(home, comparison.id)
        save(home, replace(comparison, is_open=False, is_reported=False, note=note))


def _may_go_on(comparison: Comparison, run: Run) -> bool:
    if run.state in ("interrupted", "queued"):
        return True
    if run.state == "stopped":
        return run.id in comparison.stopped
    return _was_forgotten(run) or was_not_taken(run)


def _was_checked(comparison: Comparison, run: Run) -> bool:
    """Return True for a run whose check gave results that are still there."""
    return comparison.checked.get(run.id) == "" and bool(run.checks_of_result)


def _was_forgotten(run: Run) -> bool:
    """Return True for a run whose creator died before it came into the queue."""
    return was_never_sent(run) and run.state in ("starting", "failed")


def _create_missing(home: Home, comparison: Comparison) -> Comparison:
    """Create and queue the runs that are missing: all, or as many as may train at once if what
    they take decides how many there will be."""
    for place, trial in enumerate(comparison.trials):
        if trial.id or trial.left_out:
            continue
        if comparison.is_measured and not has_room(home, comparison):
            break
        beyond = beyond_budget(home, comparison)
        if beyond:
            trial = replace(trial, left_out=beyond, fix="raise the limit")
        else:
            trial = created(home, trial)
        comparison = kept(home, comparison, place, trial)
    return comparison
