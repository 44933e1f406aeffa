"""Reports of comparisons: one HTML file that needs nothing, with Markdown and JSON beside it.

Turns the numbers of run folders into tables, sentences and plots. Starts nothing.
"""

from core.after_training.compare.report.page import body_of, html_of
from core.after_training.compare.report.sentences import cautions, findings
from core.after_training.compare.report.summary import (
    Group,
    RunFigures,
    Summary,
    summary_of,
    summary_of_runs,
)
from core.after_training.compare.report.write import write_report

__all__ = [
    "Group",
    "RunFigures",
    "Summary",
    "body_of",
    "cautions",
    "findings",
    "html_of",
    "summary_of",
    "summary_of_runs",
    "svg",
    "write_report",
]
