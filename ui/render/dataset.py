"""Report on a dataset as HTML. Escapes all text that comes from users."""

from collections.abc import Sequence
from html import escape

from core.dataset import DatasetReport, NotRead, counted
from core.dataset.report import ProblemGroup
from ui.render import notice


def data_report(report: DatasetReport) -> str:
    """Return one line about a dataset that opens to its problems, warnings and facts.

    What is not read stands below it, always in view if the model would learn something else.
    """
    items = _groups(report.problem_groups, report.num_problems, "")
    items += _groups(report.warning_groups, report.num_warnings, "warned")
    for fact in (report.evidence, *report.notes, _harmless(report.not_read)):
        if fact:
            items += f'<li class="fact">{escape(fact)}</li>'
    kind = "good" if report.is_usable else "bad"
    return (
        f'<details class="notice {kind}"><summary>{escape(report.summary())}</summary>'
        f"<ul>{items}</ul></details>"
        f"{notice(report.leak_warning, 'warned')}{_not_read(report.needs_consent)}"
    )


def _groups(groups: Sequence[ProblemGroup], num_rows: int, kind: str) -> str:
    """Return each problem once, with its lines, and how many more there are."""
    said = "".join(f'<li class="{kind}">{escape(str(each))}</li>' for each in groups)
    num_unlisted = num_rows - sum(each.num_rows for each in groups)
    if groups and num_unlisted > 0:
        said += f'<li class="{kind}">and {num_unlisted:,} more</li>'
    return said


def _not_read(fields: Sequence[NotRead]) -> str:
    """Return what is not read although the model would learn something else from it."""
    if not fields:
        return ""
    names = "".join(
        f"<li><code>{escape(each.field)}</code> {_rows_of(each)}</li>" for each in fields
    )
    said = "Not read, although the model would learn something else from it:"
    return f'<div class="notice warned not-read"><p>{said}</p><ul>{names}</ul></div>'


def _harmless(not_read: Sequence[NotRead]) -> str:
    """Return what is not read and would change nothing."""
    names = [f"{each.field} ({_rows_of(each)})" for each in not_read if not each.changes_learning]
    return f"Not read, and not needed: {', '.join(names)}" if names else ""


def _rows_of(field: NotRead) -> str:
    return f"in {counted(field.num_rows, 'row')}, first on line {field.first_line:,}"
