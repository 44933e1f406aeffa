"""`python app.py compare`: one job several ways, one report. Prints; decides nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from core.after_training.compare import (
    Comparison,
    Study,
    Trial,
    Variant,
    checking,
    conduct,
    keeper,
    plan_variants,
    record,
    report,
)
from core.after_training.compare.search import Search
from core.after_training.compare.study import require_one_card
from core.after_training.compare.variants import CHANGES_ROWS, require_prices
from core.dataset import counted
from core.job import Problem, SpecError
from core.resolve import ResolvedJob, resolve
from core.runs import Home, queue
from core.runs.engines import Placement
from core.runs.past_runs import past_runs
from core.speed import RowStatistics
from core.wording import ago
from ui.terminal.estimates import estimate_json, print_estimates
from ui.terminal.follow import interrupts
from ui.terminal.job_fields import row_statistics
from ui.terminal.placing import placement_of, split_flags
from ui.terminal.printing import out, print_json, say, wide_table
from ui.terminal.soundness import require_sound_files
from ui.terminal.study_flags import StudyFlags
from ui.terminal.usage import flag_of

SECONDS_BETWEEN_UPDATES = 0.3
STOPPING = "Stopping all runs, each with a checkpoint, and the checks."
Tell = Callable[..., object]
"""Prints progress: on standard output, or beside it if that is for JSON."""


def compare(
    *,
    home: str | None = None,
    estimate_only: bool = False,
    resume: str = "",
    stop: str = "",
    list: bool = False,
    json: bool = False,
    axis: Sequence[str] = (),
    **fields: Any,
) -> int:
    """Compare in the foreground, or do what one of the other flags asks. Raises TailorError."""
    place = Home.find(home)
    tell: Tell = say if json else out.print
    if list:
        return _list(place, json)
    if stop:
        return _stop(place, stop, json)
    if resume:
        return _start(place, record.read_comparison(place, resume), tell, json)
    asked = _asked(axis, fields)
    if not estimate_only:
        require_one_card(asked.axes())
    search = asked.search(place) if asked.optimize else None
    study = search.study if search else asked.study(place)
    placement = None if estimate_only else asked.placement(place, search or study)
    rows, found = _plan(place, study, tell)
    if estimate_only and json:
        print_json({"id": None, "runs": [estimate_json(each) for each in found], "report": None})
        return 0
    if not json:
        print_estimates(found, is_whole=search is None)
    if placement is None:
        return 0
    question = replace(search, rows=rows) if search else study
    comparison = _kept(place, asked, placement, question, found)
    if said := record.budget_sentence(comparison):
        tell(said)
    return _start(place, comparison, tell, json)


def _asked(axis: Sequence[str], fields: dict[str, Any]) -> StudyFlags:
    """Return the flags of a study. Raises SpecError for a place that no cluster could have."""
    where, others = split_flags(fields)
    placement_of(where)
    of_job = {name: value for name, value in others.items() if name.startswith("field_")}
    rest = {name: fields[name] for name in others if name not in of_job}
    return StudyFlags(axis=tuple(axis), fields=of_job, place=where, **rest)


def _start(home: Home, comparison: Comparison, tell: Tell, as_json: bool) -> int:
    tell(f"Comparison {comparison.id}. After an interruption: compare --resume {comparison.id}")
    return _follow(home, conduct.start(home, comparison), tell, as_json)


def _plan(home: Home, study: Study, tell: Tell) -> tuple[RowStatistics | None, tuple[Variant, ...]]:
    """Return the rows of the first job that can be, and all runs. Raises SpecError."""
    rows_of = RowsOfJobs(home, tell)
    rows = rows_of(_first_job(study))
    if CHANGES_ROWS.isdisjoint(study.axes):
        return rows, plan_variants(study, rows, partial(past_runs, home))
    return rows, plan_variants(study, rows_of, partial(past_runs, home))


def _kept(
    home: Home,
    asked: StudyFlags,
    placement: Placement,
    study: Study | Search,
    found: Sequence[Variant],
) -> Comparison:
    """Keep a new comparison. Raises SpecError if none of its runs can be."""
    search = study if isinstance(study, Search) else None
    if search:
        require_prices(asked.budget(), found)
        found = ()
    else:
        _require_any(found)
    return record.new_comparison(
        home,
        found,
        study.question,
        asked.command(),
        budget=asked.budget(),
        search=search,
        has_checks=not asked.no_checks,
        placement=placement,
        at_once=asked.num_at_once(placement),
    )


@dataclass
class RowsOfJobs:
    """Function that checks the data of a job as `train` does, and measures its rows.

    Jobs with the same rows are measured once.
    """

    home: Home
    tell: Tell
    known: dict[tuple[object, ...], RowStatistics | None] = field(default_factory=dict)

    def __call__(self, resolved: ResolvedJob) -> RowStatistics | None:
        """Return facts of the rows, None if they cannot be measured. Raises SpecError."""
        key = tuple(getattr(resolved.job, name) for name in sorted(CHANGES_ROWS))
        if key not in self.known:
            sound = require_sound_files(resolved)
            if sound.refusals:
                raise SpecError(*sound.refusals)
            self.known[key] = row_statistics(self.home, resolved, self.tell)
        return self.known[key]


def _first_job(study: Study) -> ResolvedJob:
    """Return the first job that can be. Raises SpecError with what is wrong if none can."""
    wrong: SpecError | None = None
    for point in study.points():
        try:
            return resolve(study.fields_of(point))
        except SpecError as error:
            wrong = wrong or error
    assert wrong is not None
    raise wrong


def _require_any(found: Sequence[Variant]) -> None:
    """Raise SpecError if every run is left out."""
    if all(each.left_out for each in found):
        reasons = {f"{each.point.label}: {each.left_out}": each.fix for each in found}
        problems = [Problem(flag_of("methods"), said, fix) for said, fix in reasons.items()]
        raise SpecError(*problems)


def _list(home: Home, as_json: bool) -> int:
    found = record.list_comparisons(home)
    if as_json:
        print_json([_json(home, each) for each in found])
    elif found:
        rows = [
            (each.id, str(len(each.trials)), ago(each.created), each.question) for each in found
        ]
        out.print(wide_table(("comparison", "runs", "when", ""), rows))
    else:
        out.print("No comparisons yet. Start one: python app.py compare --demo")
    return 0


def _stop(home: Home, comparison_id: str, as_json: bool) -> int:
    comparison = conduct.stop(home, record.read_comparison(home, comparison_id))
    if as_json:
        print_json(_json(home, comparison))
    else:
        out.print(STOPPING)
        out.print(f"To continue: python app.py compare --resume {comparison_id}")
    return 0


def _follow(home: Home, comparison: Comparison, tell: Tell, as_json: bool) -> int:
    """Show the runs until all have ended and were checked, and the report. Return the exit code.

    Ctrl-C stops all of them; a second Ctrl-C leaves them to the queue.
    """
    seen: dict[int, str] = {}
    checks = ShownChecks(home, tell)
    with interrupts() as pressed:
        while conduct.is_active(home, comparison):
            if pressed:
                pressed.clear()
                tell(f"{STOPPING} Ctrl-C again leaves them.")
                comparison = conduct.stop(home, comparison)
            comparison = keeper.carry_on(home, comparison)
            queue.advance(home)
            _tell_changes(home, comparison, seen, tell)
            comparison = checks.carry_on(comparison, lambda: bool(pressed))
            time.sleep(SECONDS_BETWEEN_UPDATES)
    queue.advance(home)
    _tell_changes(home, comparison, seen, tell)
    checks.tell_ended(comparison)
    written = report.write_report(home, comparison)
    if as_json:
        print_json(_json(home, comparison))
    else:
        for sentence in report.findings(written.summary):
            out.print(sentence)
        out.print(f"Report: {written.path}")
        if written.best:
            out.print(f"To use the best settings: python app.py train {written.best}")
    states = [each.state for each in written.summary.runs]
    if due := checking.runs_to_check(home, comparison):
        tell(f"Not checked: {counted(len(due), 'run')}. Later: compare --resume {comparison.id}")
        states.append("stopped")
    return _exit_code(states)


@dataclass
class ShownChecks:
    """Checks of the runs of a comparison, and the lines that say how they go."""

    home: Home
    tell: Tell
    begun: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def carry_on(self, comparison: Comparison, is_cancelled: Callable[[], bool]) -> Comparison:
        """Check the next run that is due, unless another program does it."""
        due = checking.runs_to_check(self.home, comparison)
        if due and comparison.is_open:
            if due[0].id not in self.begun:
                number = len(comparison.checked) + 1
                total = len(comparison.checked) + len(due)
                name = _name_of(comparison, due[0].id)
                self.tell(f"Checking before and after, {number}/{total}: {name}")
                self.begun.add(due[0].id)
            comparison = checking.check_next(self.home, comparison, is_cancelled)
        self.tell_ended(comparison)
        return comparison

    def tell_ended(self, comparison: Comparison) -> None:
        """Print a line for each check that has ended since the last call."""
        for run_id, failed in comparison.checked.items():
            if run_id in self.ended:
                continue
            self.ended.add(run_id)
            self.tell(f"{_name_of(comparison, run_id)}: {failed or self._counts(run_id)}")

    def _counts(self, run_id: str) -> str:
        run = record.run_named(self.home, run_id)
        return ", ".join(
            f"{each.name} {each.before} of {each.total} before, {each.after} after"
            for each in (run.checks_of_result if run else ())
        )


def _name_of(comparison: Comparison, run_id: str) -> str:
    """Return what tells a run from the others of its comparison."""
    trial = next(each for each in comparison.trials if each.id == run_id)
    return f"{trial.point.label}, seed {trial.seed}"


def _tell_changes(home: Home, comparison: Comparison, seen: dict[int, str], tell: Tell) -> None:
    """Print a line for each run whose state has changed."""
    total = len(comparison.trials) + comparison.num_missing
    for place, trial in enumerate(comparison.trials, start=1):
        state = record.state_of(home, trial)
        if seen.get(place) != state:
            seen[place] = state
            if state not in ("planned", "queued", "starting"):
                name = f"{trial.point.label}, seed {trial.seed}"
                tell(f"{place}/{total} {name}: {state}{_remark(home, trial)}")


def _remark(home: Home, trial: Trial) -> str:
    """Return why a run was left out or pruned, or how well it has done."""
    run = record.run_of(home, trial)
    if trial.left_out or run is None:
        return f": {trial.left_out}" if trial.left_out else ""
    if run.state == "stopped" and trial.pruned:
        return f". {trial.pruned}"
    loss = report.RunFigures(trial, run.state, run).eval_loss
    if run.state == "finished" and loss is not None:
        return f", evaluation loss {loss:.4g}"
    return ""


def _exit_code(states: Sequence[str]) -> int:
    if {"failed", "interrupted"} & set(states):
        return 1
    return 130 if "stopped" in states else 0


def _json(home: Home, comparison: Comparison) -> dict[str, object]:
    path = record.folder_of(home) / f"{comparison.id}-report.html"
    summary = report.summary_of(home, comparison)
    return {
        "id": comparison.id,
        "question": comparison.question,
        "note": comparison.note,
        "runs": [each.to_json() for each in summary.runs],
        "report": str(path) if path.exists() else None,
    }
