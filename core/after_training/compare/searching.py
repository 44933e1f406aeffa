"""Conduct a search: create the runs that an optimizer chooses, and name those to be pruned."""

from dataclasses import replace
from functools import partial
from math import isfinite

from core.after_training.compare import record
from core.after_training.compare.creation import beyond_budget, created, has_room, kept
from core.after_training.compare.optimizer import WORST, Tried, is_hopeless, next_values
from core.after_training.compare.record import Comparison, Trial, save
from core.after_training.compare.search import Search
from core.after_training.compare.variants import plan_variant
from core.runs import Home, Run
from core.runs.past_runs import past_runs

TELLING_FAILURES = ("diverged", "out_of_gpu_memory")
"""Causes of failure that come from the settings."""


def search_on(home: Home, comparison: Comparison) -> Comparison:
    """Create the next runs of a search, as many as may train at once.

    A search whose budget is used up ends. Raises SpecError without Optuna.
    """
    search = comparison.search
    while search and comparison.num_missing and has_room(home, comparison):
        if beyond := beyond_budget(home, comparison):
            note = f"The search ended after {len(comparison.trials)} of {search.num_runs} runs: "
            search = replace(search, num_runs=len(comparison.trials))
            comparison = replace(comparison, search=search, note=f"{note}{beyond}.")
            save(home, comparison)
            break
        values = next_values(search, tried_so_far(home, comparison))
        point = search.point_of(values)
        past = partial(past_runs, home)
        trial = record.trial_of(plan_variant(search.study, point, search.rows, past))
        if not trial.left_out:
            trial = created(home, trial)
        comparison = kept(home, comparison, len(comparison.trials), trial)
    return comparison


def prune(home: Home, comparison: Comparison) -> Comparison:
    """Give up the runs of a search that do worse than the median of the others."""
    search = comparison.search
    if search is None:
        return comparison
    for place, trial in enumerate(comparison.trials):
        run = record.run_of(home, trial)
        if run is None or trial.pruned or run.state != "running":
            continue
        mine = _tried(search, trial, run)
        others = tried_so_far(home, comparison)
        if is_hopeless(search, others, mine, warm_up=run.max_steps // 4):
            step = max(mine.losses)
            reason = f"Pruned: at step {step:,} its evaluation loss, {mine.losses[step]:.3f}, was "
            reason += "worse than the median of the finished runs."
            comparison = comparison.with_trial(place, replace(trial, pruned=reason))
            save(home, comparison)
    return comparison


def tried_so_far(home: Home, comparison: Comparison) -> tuple[Tried, ...]:
    """Return what the runs of a search have shown so far, in their order."""
    search = comparison.search
    assert search is not None
    return tuple(_tried(search, each, record.run_of(home, each)) for each in comparison.trials)


def _tried(search: Search, trial: Trial, run: Run | None) -> Tried:
    """Return what one run of a search has shown so far.

    A run that diverged or did not fit is the worst. One that failed otherwise, was stopped by hand
    or deleted says nothing.
    """
    values = search.values_of(trial.point)
    if run is None:
        if trial.left_out:
            return Tried(values, "finished", WORST)
        return Tried(values, "failed")
    curve = run.curves().get("eval_loss")
    pairs = zip(curve.steps, curve.values, strict=True) if curve else ()
    losses = {int(step): float(loss) for step, loss in pairs if isfinite(loss)}
    if run.cause in TELLING_FAILURES:
        return Tried(values, "finished", WORST)
    if run.state == "finished" and losses:
        return Tried(values, "finished", losses[max(losses)], losses)
    if run.is_active and not trial.pruned:
        return Tried(values, "running", losses=losses)
    if losses and trial.pruned:
        return Tried(values, "pruned", losses=losses)
    return Tried(values, "failed")
