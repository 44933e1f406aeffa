"""Report on a dataset as HTML. Escapes all text that comes from users."""

from html import escape

from core.dataset import DatasetReport
from ui.render import notice


def data_report(report: DatasetReport) -> str:
    """Return one line about a dataset that opens to its problems, warnings and facts."""
    items = [f"<li>{escape(str(problem))}</li>" for problem in report.problems]
    num_unlisted = report.num_problems - len(report.problems)
    if num_unlisted:
        items.append(f"<li>and {num_unlisted:,} more</li>")
    items += [f'<li class="warned">{escape(str(warning))}</li>' for warning in report.warnings]
    for fact in (report.evidence, *report.notes):
        if fact:
            items.append(f'<li class="fact">{escape(fact)}</li>')
    kind = "good" if report.is_usable else "bad"
    return (
        f'<details class="notice {kind}"><summary>{escape(report.summary())}</summary>'
        f"<ul>{''.join(items)}</ul></details>{notice(report.leak_warning, 'warned')}"
    )
