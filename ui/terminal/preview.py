"""Command `preview`: rows as a model will see them. Prints; decides nothing about a row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from core import dataset
from core.dataset import DatasetReport
from core.dataset.preview import Preview, ShownRow, lost_in_template
from core.job import JobSpec, PreviewError, Problem, SpecError
from core.models import find_model
from ui.terminal.data_files import DataFile, DataFinder
from ui.terminal.printing import MAX_PROBLEMS, print_json, say
from ui.terminal.shown_rows import print_rows

DEFAULT_ROWS = "3"
MAX_ROWS = 1000
LAST_LINE = 10**11
LONGEST_SHOWN = 40


def preview(
    *,
    file: str,
    home: str | None = None,
    line: str = "1",
    rows: str = DEFAULT_ROWS,
    stage: str = "sft",
    model: str = "demo",
    max_length: str = "2048",
    columns: str = "",
    split_text: str = "",
    json: bool = False,
) -> int:
    """Print rows as a model will see them. Return 2 if one cannot be shown. Raises TailorError."""
    job = JobSpec.parse({"stage": stage, "max_length": max_length, "model": model})
    wanted = _Wanted(_number("line", line, LAST_LINE), _number("rows", rows, MAX_ROWS), job)
    find_model(model, job.revision)
    data = DataFinder(home, stage, columns, split_text).find(file)
    report = dataset.check_in_child(data.path, stage)
    shown, problem = _show(wanted, data, report)
    if json:
        print_json(_to_json(shown, report))
    else:
        say(*data.actions)
        _print_shown(shown)
    for row in shown:
        if row.error:
            say(f"line {row.line}: {row.error}")
    if problem:
        raise problem
    if not shown:
        say(*report.problem_groups[:MAX_PROBLEMS])
    return 0 if shown and not any(row.error for row in shown) else 2


@dataclass(frozen=True)
class _Wanted:
    """Rows to show, and what they are for."""

    line: int
    num_rows: int
    job: JobSpec


def _show(
    wanted: _Wanted, data: DataFile, report: DatasetReport
) -> tuple[tuple[ShownRow, ...], PreviewError | None]:
    """Return rows as the model will see them, or why there are none."""
    if not report.valid_rows:
        return (), None
    job = wanted.job
    location = find_model(job.model, job.revision).location
    try:
        with Preview.for_job(job, data.path, location) as session:
            return session.rows_from_line(wanted.line, wanted.num_rows, job.max_length), None
    except PreviewError as error:
        return (), error


def _to_json(rows: tuple[ShownRow, ...], report: DatasetReport) -> dict[str, object]:
    not_read = []
    for each in report.not_read:
        not_read.append({"field": each.field, "rows": each.num_rows, "line": each.first_line})
    return {
        "rows": [_row_json(row) for row in rows],
        "not_read": not_read,
        "lost_in_template": [each.to_json() for each in lost_in_template(rows)],
    }


def _row_json(row: ShownRow) -> Mapping[str, object]:
    return {name: value for name, value in row.to_json().items() if name != "cut"}


def _print_shown(rows: tuple[ShownRow, ...]) -> None:
    if rows:
        print_rows(rows)
    for each in lost_in_template(rows):
        say(f"{each}.")


def _number(field: str, text: str, at_most: int) -> int:
    """Return a number from 1 to `at_most`. Raises SpecError."""
    if re.fullmatch("[0-9]{1,12}", text) and 1 <= int(text) <= at_most:
        return int(text)
    raise SpecError(
        Problem(field, f"{text[:LONGEST_SHOWN]!r} is no such number", f"give 1 to {at_most:,}")
    )
