"""Write the report of a comparison beside its record."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.after_training.compare import Comparison, record
from core.after_training.compare.report.markdown import markdown_of
from core.after_training.compare.report.page import html_of
from core.after_training.compare.report.sentences import cautions, findings
from core.after_training.compare.report.summary import Summary, summary_of
from core.runs import Home
from core.training.contract.files import write_text


@dataclass(frozen=True)
class WrittenReport:
    """Report that was written."""

    path: Path
    """HTML file; the other two are beside it."""
    summary: Summary
    best: Path | None
    """Job file with the best settings; None if no run has finished."""


def write_report(home: Home, comparison: Comparison) -> WrittenReport:
    """Write <id>-report.html, .md and .json of a comparison as it is now, and <id>-best.json.

    Raises OSError.
    """
    summary = summary_of(home, comparison)
    path = record.folder_of(home) / f"{comparison.id}-report.html"
    write_text(path, html_of(summary))
    write_text(path.with_suffix(".md"), markdown_of(summary))
    write_text(path.with_suffix(".json"), json.dumps(json_of(comparison.id, summary), indent=2))
    best = None
    if summary.best is not None:
        best = record.folder_of(home) / f"{comparison.id}-best.json"
        write_text(best, json.dumps(summary.best.shown.trial.fields, indent=2))
    return WrittenReport(path, summary, best)


def json_of(name: str, summary: Summary) -> dict[str, object]:
    """Return the report as one JSON value."""
    best = summary.best
    return {
        "id": name,
        "question": summary.question,
        "command": summary.command,
        "note": summary.note,
        "best": best.label if best else None,
        "findings": findings(summary),
        "cautions": cautions(summary),
        "runs": [each.to_json() for each in summary.runs],
    }
