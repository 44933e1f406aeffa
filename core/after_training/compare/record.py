"""Comparison: the file that names its runs, comparisons/<id>.json in the home. Starts nothing."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

from core.after_training.compare.search import Search
from core.after_training.compare.study import Budget, FieldMap, Point
from core.after_training.compare.variants import Variant
from core.job import Problem, RunNotFound, SpecError
from core.runs import Home, Run, read
from core.training.contract.files import write_json

COMPARISON_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


@dataclass(frozen=True)
class Trial:
    """Run of a comparison: planned, created, or left out."""

    method: str
    seed: int
    settings: FieldMap = field(default_factory=dict)
    """Values of the axes."""
    fields: FieldMap = field(default_factory=dict)
    """Job fields from which the run is created; {} if it is left out."""
    id: str = ""
    """Of its run; "" until it is created."""
    left_out: str = ""
    """Why it does not run."""
    fix: str = ""
    """What would let it run."""
    hours: float | None = None
    """Forecast; None if the speed is unknown."""
    pruned: str = ""
    """Why an optimizer has stopped it, one sentence."""

    @property
    def point(self) -> Point:
        """Group of runs that it belongs to."""
        return Point(self.method, self.settings)


@dataclass(frozen=True)
class Comparison:
    """Runs that answer one question."""

    id: str
    created: float
    """Unix seconds."""
    question: str
    """One sentence."""
    command: str
    """Command that asks the same again."""
    trials: tuple[Trial, ...] = ()
    stopped: tuple[str, ...] = ()
    """Runs that were stopped together, and are continued together."""
    is_open: bool = False
    """True until every run has ended or all were stopped: runs that are missing are created."""
    budget: Budget = field(default_factory=Budget)
    search: Search | None = None
    """None for a grid, whose runs are all known at once."""
    note: str = ""
    """Why it ended before all its runs, one sentence."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the groups of runs."""
        return tuple(dict.fromkeys(each.point.label for each in self.trials))

    @property
    def is_measured(self) -> bool:
        """True if a limit on the time is held against what the runs have taken so far.

        Where the speed is unknown, nothing can be forecast, nor for runs that a search has still
        to choose.
        """
        limits = (self.budget.max_hours, self.budget.max_usd)
        may_run = [each for each in self.trials if not each.left_out]
        is_unknown = self.search is not None or any(each.hours is None for each in may_run)
        return limits != (None, None) and is_unknown

    @property
    def num_missing(self) -> int:
        """Number of runs that a search has still to choose."""
        if self.search is None:
            return 0
        return max(0, self.search.num_runs - len(self.trials))

    def with_trial(self, place: int, trial: Trial) -> "Comparison":
        """Return the comparison with another trial at this place."""
        return replace(self, trials=(*self.trials[:place], trial, *self.trials[place + 1 :]))


def folder_of(home: Home) -> Path:
    """Return the folder of the comparisons of a home."""
    return home.path / "comparisons"


def new_comparison(
    home: Home,
    found: Sequence[Variant],
    question: str,
    command: str,
    *,
    budget: Budget | None = None,
    search: Search | None = None,
) -> Comparison:
    """Keep a new comparison of these variants, or of those that a search will choose.

    Raises OSError.
    """
    folder_of(home).mkdir(exist_ok=True)
    comparison = Comparison(
        id=_new_id(home),
        created=time.time(),
        question=question,
        command=command,
        trials=tuple(map(trial_of, found)),
        budget=budget or Budget(),
        search=search,
    )
    save(home, comparison)
    return comparison


def save(home: Home, comparison: Comparison) -> None:
    """Replace the file of a comparison. Raises OSError."""
    search = comparison.search.to_json() if comparison.search else None
    fields = {**asdict(replace(comparison, search=None)), "search": search}
    write_json(folder_of(home) / f"{comparison.id}.json", fields)


def budget_sentence(comparison: Comparison) -> str:
    """Return how limits are held that no forecast can be held against, "" if there are none."""
    if not comparison.is_measured:
        return ""
    hours, usd = comparison.budget.max_hours, comparison.budget.max_usd
    limits = [f"{hours:g} h"] if hours is not None else []
    limits += [f"${usd:g}"] if usd is not None else []
    return (
        f"What the runs will take is not known yet. It is measured: no run is started that would "
        f"exceed {' or '.join(limits)}, and one that has started trains to its end."
    )


def read_comparison(home: Home, comparison_id: str) -> Comparison:
    """Read a comparison. Raises SpecError if there is none, or if its file is damaged."""
    path = folder_of(home) / f"{comparison_id}.json"
    fix = f"`python app.py compare --list` lists them; they are in {folder_of(home)}"
    if not COMPARISON_ID.fullmatch(comparison_id) or not path.is_file():
        problem = f"there is no comparison {comparison_id!r}"
        raise SpecError(Problem("comparison", problem, fix))
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        problem = f"{path.name} is damaged"
        raise SpecError(Problem("comparison", problem, "start another comparison")) from None


def list_comparisons(home: Home) -> tuple[Comparison, ...]:
    """Return the readable comparisons of a home, the newest first."""
    found = []
    for path in sorted(folder_of(home).glob("*.json"), reverse=True):
        try:
            found.append(read_comparison(home, path.stem))
        except SpecError:  # a report, or a damaged file
            continue
    return tuple(found)


def run_of(home: Home, trial: Trial) -> Run | None:
    """Return the run of a trial; None before it is created and after it was deleted."""
    try:
        if trial.id:
            return read(home, trial.id)
        return None
    except (RunNotFound, SpecError):
        return None


def runs_of(home: Home, comparison: Comparison) -> tuple[Run, ...]:
    """Return the runs that exist, in the order of the comparison."""
    found = (run_of(home, trial) for trial in comparison.trials)
    return tuple(run for run in found if run)


def state_of(home: Home, trial: Trial) -> str:
    """Return the state of a run, or `left out`, `planned` or `deleted`."""
    if trial.left_out:
        return "left out"
    if not trial.id:
        return "planned"
    run = run_of(home, trial)
    if run:
        return run.state
    return "deleted"


def trial_of(variant: Variant) -> Trial:
    """Return a variant as it is kept."""
    fields: dict[str, object] = {}
    if variant.resolved is not None:
        fields = variant.resolved.job.model_dump()
        fields |= {name: str(path) for name, path in variant.resolved.datasets.items()}
    point = variant.point
    return Trial(
        point.method,
        variant.seed,
        dict(point.settings),
        fields,
        left_out=variant.left_out,
        fix=variant.fix,
        hours=variant.speed.hours if variant.speed else None,
    )


def _new_id(home: Home) -> str:
    stem = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        comparison_id = stem if number == 1 else f"{stem}-{number}"
        if not (folder_of(home) / f"{comparison_id}.json").exists():
            return comparison_id
    raise AssertionError("count is endless")


def _from_json(fields: Mapping[str, object]) -> Comparison:
    """Raises TypeError, KeyError for a damaged record."""
    trials, stopped = fields["trials"], fields["stopped"]
    if not isinstance(trials, list) or not isinstance(stopped, list):
        raise TypeError
    created = fields["created"]
    if not isinstance(created, int | float):
        raise TypeError
    return Comparison(
        id=str(fields["id"]),
        created=float(created),
        question=str(fields["question"]),
        command=str(fields["command"]),
        trials=tuple(Trial(**each) for each in trials),
        stopped=tuple(map(str, stopped)),
        is_open=fields.get("is_open") is True,
        budget=_budget(fields.get("budget")),
        search=_search(fields.get("search")),
        note=str(fields.get("note") or ""),
    )


def _budget(fields: object) -> Budget:
    """Raises TypeError for a damaged record. Those of early versions have no budget."""
    if fields is None:
        return Budget()
    if not isinstance(fields, dict):
        raise TypeError
    for limit in fields.values():
        if not isinstance(limit, int | float | None):
            raise TypeError
    return Budget(**fields)


def _search(fields: object) -> Search | None:
    """Raises TypeError, KeyError for a damaged record."""
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise TypeError
    return Search.from_json(fields)
