"""A dataset as HTML: what it holds, what is wrong with it by line. Escapes all text of people's."""

from html import escape

from core.dataset import DatasetReport


def data_report(report: DatasetReport) -> str:
    """One line about a dataset; behind it why it was taken for what it is, and its problems and warnings by line."""
    listed = "".join(f"<li>{escape(str(problem))}</li>" for problem in report.problems)
    listed += (
        f"<li>and {unlisted:,} more</li>"
        if (unlisted := report.num_problems - len(report.problems))
        else ""
    )
    warned = "".join(
        f'<li class="warned">{escape(str(warning))}</li>' for warning in report.warnings
    )
    facts = "".join(
        f'<li class="fact">{escape(fact)}</li>' for fact in (report.evidence, *report.notes) if fact
    )
    kind = "good" if report.is_usable else "bad"
    summary = f"<summary>{escape(report.summary())}</summary>"
    return f'<details class="notice {kind}">{summary}<ul>{listed}{warned}{facts}</ul></details>'
