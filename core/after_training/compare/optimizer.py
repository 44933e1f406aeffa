"""Optimizer: what a search tries next, and which run is not worth its time. Runs nothing.

Optuna decides, by its tree of Parzen estimators and by the median of the other runs. Its study is
built again in memory for each decision, from what the runs have shown. So nothing is lost with a
process, and the same runs always lead to the same decision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from core.after_training.compare.search import Range, Search
from core.after_training.compare.study import FieldMap
from core.job import Problem, SpecError

PACKAGE = "optuna"
INSTALL = ".venv/bin/pip install --no-deps -r requirements-optuna.txt"
MAX_RANDOM = 10
"""First runs at most whose settings are drawn at random: they show where the good ones are."""
MIN_RANDOM = 3
MIN_FINISHED = 3
"""Finished runs before any other is pruned."""
WORST = float("inf")
"""Value of a run that diverged or does not fit: the optimizer keeps away from there."""

Outcome = Literal["finished", "pruned", "failed", "running"]


@dataclass(frozen=True)
class Tried:
    """Settings that were tried, and what came out so far."""

    values: FieldMap
    outcome: Outcome
    loss: float | None = None
    """Evaluation loss at the end; WORST for settings to keep away from. None counts as failed."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Step -> evaluation loss; finite."""


def is_installed() -> bool:
    """Return True if Optuna can be imported."""
    return find_spec(PACKAGE) is not None


def require_installed() -> None:
    """Raise SpecError if Optuna is not installed."""
    if not is_installed():
        fix = f"`{INSTALL}`, or give values such as --axis lora_r=8,32 for a grid, which needs none"
        raise SpecError(Problem("optimize", "this needs Optuna, which is not installed", fix))


def next_values(search: Search, tried: Sequence[Tried]) -> FieldMap:
    """Return the settings to try next. Raises SpecError if Optuna is not installed."""
    require_installed()
    import optuna

    num_random = max(MIN_RANDOM, min(MAX_RANDOM, search.num_runs // 3))
    sampler = optuna.samplers.TPESampler(
        seed=len(tried), n_startup_trials=num_random, constant_liar=True
    )
    study = _study(search, tried, sampler)
    found = study.ask(_distributions(search)).params
    return {name: _value(search, name, found[name]) for name in search.space}


def is_hopeless(search: Search, tried: Sequence[Tried], run: Tried, warm_up: int) -> bool:
    """Return True if a run does worse than the median of the finished ones at the same step.

    Never before `warm_up` steps. Raises SpecError if Optuna is not installed.
    """
    require_installed()
    import optuna

    if not run.losses:
        return False
    pruner = optuna.pruners.MedianPruner(n_startup_trials=MIN_FINISHED, n_warmup_steps=warm_up)
    study = _study(search, tried, optuna.samplers.RandomSampler(seed=0))
    return bool(pruner.prune(study, _trial(search, run)))


def _study(search: Search, tried: Sequence[Tried], sampler: Any) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([_trial(search, each) for each in tried])
    return study


def _trial(search: Search, run: Tried) -> Any:
    from optuna.trial import TrialState, create_trial

    states: Mapping[Outcome, TrialState] = {
        "finished": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
    }
    outcome: Outcome = run.outcome
    if outcome == "finished" and run.loss is None:
        outcome = "failed"
    return create_trial(
        state=states[outcome],
        value=run.loss if outcome == "finished" else None,
        params={name: _key(search, name, run.values[name]) for name in search.space},
        distributions=_distributions(search),
        intermediate_values=dict(run.losses),
    )


def _distributions(search: Search) -> dict[str, Any]:
    """Return what Optuna chooses from. Of listed values it gets the places: any value will do."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for name, axis in search.space.items():
        if not isinstance(axis, Range):
            found[name] = CategoricalDistribution(range(len(axis)))
        elif axis.is_whole:
            found[name] = IntDistribution(int(axis.low), int(axis.high), log=axis.is_log)
        else:
            found[name] = FloatDistribution(axis.low, axis.high, log=axis.is_log)
    return found


def _key(search: Search, name: str, value: object) -> object:
    """Return a value as Optuna knows it."""
    axis = search.space[name]
    return value if isinstance(axis, Range) else axis.index(value)


def _value(search: Search, name: str, key: Any) -> object:
    """Return what Optuna has chosen as the job reads it."""
    axis = search.space[name]
    return axis.rounded(key) if isinstance(axis, Range) else axis[key]
