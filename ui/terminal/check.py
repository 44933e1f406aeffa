"""Command `check`: what a data file holds, and its repairs. Prints; decides nothing of a row."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from core import dataset
from core.dataset import DatasetReport, RowProblem, counted
from core.dataset.report import LEAKED
from core.dataset.token_lengths import Lengths
from core.job import DatasetError, JobSpec, Problem, SpecError
from core.models import find_model
from core.resolve import resolve
from core.runs import Home
from ui.terminal.data_files import (
    DataFile,
    DataFinder,
    require_new_files,
    write_changed,
    write_without_bad_rows,
)
from ui.terminal.printing import MAX_PROBLEMS, out, print_json, say
from ui.terminal.soundness import measure_rows, require_sound_files

DEFAULT_MAX_LENGTH = "2048"


@dataclass(frozen=True)
class Checked:
    """Report on a file, and what a model makes of its rows."""

    data: DataFile
    report: DatasetReport
    lengths: Lengths | None = None
    problems: tuple[Problem, ...] = ()
    """Reasons of the model not to start."""
    notes: tuple[str, ...] = ()
    """Sentences about how the model reads the rows."""

    @property
    def is_usable(self) -> bool:
        return self.report.is_usable and not self.problems

    def to_json(self) -> dict[str, object]:
        """Return what `check --json` prints."""
        report = self.report
        refused = tuple(_row_problem(each, "not_trainable") for each in self.problems)
        report = replace(
            report,
            notes=(*self.data.actions, *report.notes, *self.notes),
            problems=(*report.problems, *refused),
            num_problems=report.num_problems + len(refused),
        )
        return report.to_json() | (self.lengths.to_json() if self.lengths else {})


def check(
    *,
    file: str,
    eval_file: str | None = None,
    home: str | None = None,
    stage: str = "sft",
    model: str | None = None,
    adapter: str = "",
    max_length: str = DEFAULT_MAX_LENGTH,
    columns: str = "",
    split_text: str = "",
    repair: str = "",
    keep_wanted: str = "",
    drop_bad: str = "",
    accept_unread: bool = False,
    json: bool = False,
) -> int:
    """Print what a dataset contains. Return 0 if it is usable, 2 if not. Raises TailorError."""
    fields = {"stage": stage, "max_length": max_length, "accept_unread": accept_unread}
    JobSpec.parse(fields)
    targets = {"repair": repair, "keep-wanted": keep_wanted, "drop-bad": drop_bad}
    require_new_files(targets)
    finder = DataFinder(home, stage, columns, split_text)
    try:
        data = finder.find(file)
        eval_data = finder.find(eval_file, may_be_ready=True) if eval_file else None
    except DatasetError as error:
        if not json:
            raise
        print_json(_refused(error).to_json())
        return 2
    data = write_changed(data, targets)
    checked = _checked(data, eval_data, stage)
    if drop_bad:
        checked = _without_bad_rows(checked, eval_data, drop_bad, stage)
    if model and checked.report.is_usable:
        wanted = {**fields, **_of_model(model, adapter)}
        checked = _with_refusals(checked, eval_data, wanted, home, raises=not json)
    _print_checked(checked, file, as_json=json)
    return 0 if checked.is_usable else 2


def _checked(data: DataFile, eval_data: DataFile | None, stage: str) -> Checked:
    eval_path = eval_data.path if eval_data else None
    return Checked(data, dataset.check_in_child(data.path, stage, eval_path=eval_path))


def _without_bad_rows(
    checked: Checked, eval_data: DataFile | None, target: str, stage: str
) -> Checked:
    """Write a file without its bad rows and check that. Raises SpecError."""
    report = checked.report
    if not report.valid_rows:
        groups = (each.for_user() for each in report.problem_groups[:MAX_PROBLEMS])
        problem = Problem("drop-bad", "no row would be left", "correct the rows instead")
        raise SpecError(*groups, problem)
    say(*report.problem_groups[:MAX_PROBLEMS])
    return _checked(write_without_bad_rows(checked.data, target, stage), eval_data, stage)


def _with_refusals(
    checked: Checked,
    eval_data: DataFile | None,
    fields: Mapping[str, object],
    home: str | None,
    *,
    raises: bool,
) -> Checked:
    """Return what a model makes of the rows, or why it cannot train on them. Raises TailorError."""
    try:
        return _measured(checked, eval_data, fields, home)
    except SpecError as error:
        if raises:
            raise
        return replace(checked, problems=error.problems)


def _measured(
    checked: Checked, eval_data: DataFile | None, fields: Mapping[str, object], home: str | None
) -> Checked:
    """Return what a training of these fields would say before its start. Raises TailorError."""
    files = {"dataset": str(checked.data.path)}
    if eval_data:
        files["eval_dataset"] = str(eval_data.path)
    resolved = resolve({**fields, **files})
    missing = resolved.model.missing_files()
    if missing:
        raise SpecError(missing)
    refusals = require_sound_files(resolved, {"dataset": checked.report}).refusals
    measured = measure_rows(Home.find(home), resolved)
    if measured is None:
        return replace(checked, problems=refusals)
    lengths = measured.lengths.at(resolved.job.max_length)
    problems = (*refusals, *measured.problems)
    return replace(checked, lengths=lengths, problems=problems, notes=measured.notes)


def _of_model(model: str, adapter: str) -> dict[str, object]:
    """Return a model with its adapter, and the method of a base that only one can train.

    A check asks for no other method. Raises ModelNotFound.
    """
    fields: dict[str, object] = {"model": model, "adapter": adapter}
    method = find_model(model).only_method
    return fields | ({"method": method} if method else {})


def _refused(error: DatasetError) -> DatasetReport:
    """Return the report on a file that could not be imported."""
    return DatasetReport.refused(_row_problem(error.problems[0], "not_imported"))


def _row_problem(problem: Problem, code: str) -> RowProblem:
    return RowProblem.from_problem(problem, code)


def _print_checked(checked: Checked, file: str, *, as_json: bool) -> None:
    if as_json:
        print_json(checked.to_json())
        return
    report = checked.report
    for action in checked.data.actions:
        out.print(action)
    out.print(report.summary(), style="bold")
    if checked.lengths and checked.lengths.readable:
        _print_lengths(checked.lengths)
    for note in (*report.notes, *checked.notes):
        out.print(note)
    if report.not_read:
        listed = ", ".join(map(str, report.not_read[:MAX_PROBLEMS]))
        out.print(f"Not read: {listed}")
    _print_problems(report)
    say(*checked.problems)
    if report.leak_warning and not checked.lengths:
        say(report.leak_warning)
    for line in _advice(report, file):
        out.print(line)


def _print_problems(report: DatasetReport) -> None:
    problems = report.problem_groups
    # A sentence of its own says which rows are evaluated on and trained on.
    warnings = [each for each in report.warning_groups if each.first.code != LEAKED]
    say(*problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        say(f"... and {counted(len(problems) - MAX_PROBLEMS, 'more problem')}")
    say(*(f"warning: {each}" for each in warnings[:MAX_PROBLEMS]))
    if len(warnings) > MAX_PROBLEMS:
        say(f"... and {counted(len(warnings) - MAX_PROBLEMS, 'more warning')}")


def _advice(report: DatasetReport, file: str) -> list[str]:
    """Return the flags that would help."""
    command = f"python app.py check {shlex.quote(file)}"
    advice = []
    if report.suggestion:
        pairs = ",".join(f"{ours}={theirs}" for ours, theirs in report.suggestion.items())
        advice.append(f"To map its columns: {command} --map {shlex.quote(pairs)}")
    if report.repairs and not report.is_usable:
        advice.append(f"To repair it: {command} --repair NEW.jsonl")
    if report.num_problems and report.valid_rows:
        advice.append(f"To leave its bad rows out: {command} --drop-bad NEW.jsonl")
    if "text" in report.repairs:
        advice.append("To split the text otherwise: --split-text paragraphs, lines or whole")
    return advice


def _print_lengths(lengths: Lengths) -> None:
    sizes = f"{lengths.p50:,} (median), {lengths.p95:,} (95 %), {lengths.max:,} (longest)"
    out.print(f"Tokens per row: {sizes}")
    cut, lost = counted(lengths.truncated_rows, "row"), lengths.lost_answer_rows
    out.print(f"max_length {lengths.max_length} cuts {cut}; {lost:,} lose the whole answer")
    if lengths.unanswered_rows:
        out.print(f"In {counted(lengths.unanswered_rows, 'row')} no answer counts for the loss")
