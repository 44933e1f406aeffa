"""Comparison: the file that names its runs, comparisons/<id>.json in the home. Starts nothing."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from core.after_training.compare.search import Search
from core.after_training.compare.study import Budget, FieldMap, Point
from core.after_training.compare.variants import Variant
from core.device import this_machine
from core.job import Problem, RunNotFound, SpecError
from core.job.places import allowed, only_in
from core.runs import Home, Run, read
from core.runs.checks import with_whole_paths
from core.runs.engines import Placement
from core.speed import RowStatistics
from core.training.contract.files import write_json
from core.training.contract.methods import METHODS

MAX_SECONDS = 1e11
"""No clock shows a later time."""
SECONDS_TO_LOCK = 20.0
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
    rows: RowStatistics | None = None
    """Facts of the data, so that its run predicts what was shown before the start."""

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
    num_stops: int = 0
    """How often it was stopped: its runs may be on the way to a cluster then."""
    is_open: bool = False
    """True until every run has ended and was checked, or all were stopped: what is missing is
    done."""
    is_reported: bool = True
    """False from the start until the report of its end is written."""
    has_checks: bool = False
    """True if finished runs answer suites, as the model before them does, when all have ended."""
    checked: Mapping[str, str] = field(default_factory=dict)
    """Run whose check has ended -> why it gave no results, "" if it gave some."""
    budget: Budget = field(default_factory=Budget)
    search: Search | None = None
    """None for a grid, whose runs are all known at once."""
    folders: tuple[str, ...] | None = None
    """Folders in which its jobs may name files; None for all."""
    note: str = ""
    """Why it ended before all its runs, one sentence."""
    placement: Placement = field(default_factory=Placement)
    """Where its runs train."""
    at_once: int = 0
    """Runs on a cluster that train or wait at once, where their results decide on the next; 0 for
    the usual number."""

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
    def most_at_once(self) -> int:
        """Runs that may train or wait at once, where their results decide on the next.

        Here: one for each device. A cluster has many, of which Tailor knows nothing.
        """
        if self.placement.is_here:
            return max(1, len(this_machine().gpus))
        return self.at_once or AT_ONCE_ON_A_CLUSTER

    def only_its_files(self) -> AbstractContextManager[None]:
        """Let jobs name the files that they could name where this was asked, not those that its
        conductor may read."""
        return only_in(None if self.folders is None else tuple(map(Path, self.folders)))

    @property
    def num_missing(self) -> int:
        """Number of runs that a search has still to choose."""
        if self.search is None:
            return 0
        return max(0, self.search.num_runs - len(self.trials))

    def with_trial(self, place: int, trial: Trial) -> "Comparison":
        """Return the comparison with another trial at this place."""
        return replace(self, trials=(*self.trials[:place], trial, *self.trials[place + 1 :]))


AT_ONCE_ON_A_CLUSTER = 4
"""Usual number: an optimizer that waits for none of its runs chooses blindly."""
MOST_AT_ONCE = 100
STORED = TypeAdapter(Comparison)
"""Reads a record; keys that an early version did not write have their defaults."""


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
    has_checks: bool = False,
    placement: Placement | None = None,
    at_once: int = 0,
) -> Comparison:
    """Keep a new comparison of these variants, or of those that a search will choose.

    Raises OSError.
    """
    folder_of(home).mkdir(exist_ok=True)
    folders = allowed()
    comparison = Comparison(
        id=_new_id(home),
        created=time.time(),
        question=question,
        command=command,
        trials=tuple(map(trial_of, found)),
        budget=budget or Budget(),
        search=search,
        has_checks=has_checks,
        placement=placement or Placement(),
        at_once=at_once,
        folders=None if folders is None else tuple(map(str, folders)),
    )
    save(home, comparison)
    return comparison


@contextmanager
def locked(home: Home, seconds: float = SECONDS_TO_LOCK) -> Iterator[None]:
    """Keep other processes from changing comparisons. Raises SpecError, or Timeout at once if
    `seconds` is 0."""
    try:
        with FileLock(folder_of(home) / "lock").acquire(timeout=seconds):
            yield
    except Timeout:
        if not seconds:
            raise
        problem = f"another program has changed comparisons for {seconds:g} s"
        raise SpecError(Problem("comparison", problem, "try again")) from None


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
        return _from_text(comparison_id, path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
    return run_named(home, trial.id)


def run_named(home: Home, run_id: str) -> Run | None:
    """Return the run of an id; None if there is none that can be read."""
    try:
        if run_id:
            return read(home, run_id)
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
    rows = None
    if variant.resolved is not None:
        rows = variant.resolved.rows
        fields = variant.resolved.job.model_dump()
        fields |= {name: str(path) for name, path in variant.resolved.datasets.items()}
        fields["check_suites"] = with_whole_paths(variant.resolved.job.check_suites)
    point, speed = variant.point, variant.speed
    return Trial(
        point.method,
        variant.seed,
        dict(point.settings),
        fields,
        left_out=variant.left_out,
        fix=variant.fix,
        hours=speed.hours if speed else None,
        rows=rows,
    )


def _new_id(home: Home) -> str:
    stem = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        comparison_id = stem if number == 1 else f"{stem}-{number}"
        if not (folder_of(home) / f"{comparison_id}.json").exists():
            return comparison_id
    raise AssertionError("count is endless")


def _from_text(comparison_id: str, text: str) -> Comparison:
    """Raises ValueError for a damaged record. What this version does not know is left out."""
    comparison = STORED.validate_json(text)
    methods = {each.method for each in comparison.trials}
    if comparison.search is not None:
        comparison.search.require_sound()
    is_sound = methods <= set(METHODS) and 0 <= comparison.created < MAX_SECONDS
    if comparison.id != comparison_id or not is_sound:
        raise ValueError
    return comparison
