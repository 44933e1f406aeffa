"""Report as Markdown: the sentences and tables of the HTML file, without the plots."""

import re
from collections.abc import Iterator

from core.after_training.compare.report.sentences import cautions, findings
from core.after_training.compare.report.summary import Summary
from core.after_training.compare.report.tables import Table, answers, tables

SPECIAL = re.compile(r"([\\`*_\[\]#|~])")


def markdown_of(summary: Summary) -> str:
    """Return the whole file. Text of users cannot become markup."""
    return "\n".join(_lines(summary)) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    yield f"# {plain(summary.title)}"
    yield from ("", plain(summary.question), "", "## What the runs say", "")
    yield from (f"- {plain(line)}" for line in findings(summary))
    for table in tables(summary):
        yield from _table(table, "##")
    found = answers(summary)
    if found:
        yield from ("", "## Answers side by side")
    for table in found:
        yield from _table(table, "###")
    yield from ("", "## What must not be concluded", "")
    yield from (f"- {plain(line)}" for line in cautions(summary))
    if summary.command:
        yield from ("", "## To repeat it", "", f"    {' '.join(summary.command.split())}")


def _table(table: Table, level: str) -> Iterator[str]:
    yield from ("", f"{level} {plain(table.title)}", "")
    for line in (table.heads, ("---",) * len(table.heads), *table.rows):
        cells = line if set(line) == {"---"} else tuple(map(plain, line))
        yield f"| {' | '.join(cells)} |"
    if table.note:
        yield from ("", plain(table.note))


def plain(text: str) -> str:
    """Return text on one line in which no character is markup."""
    escaped = SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
