"""Reasons against a start, before it is pressed. Starts nothing."""

from pathlib import Path

import gradio as gr

from core.dataset.report import require_one_kind
from core.job import SpecError
from core.resolve import ResolvedJob
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import Answer
from ui.handlers.reports import checked_beside, require_usable
from ui.handlers.rows import Previews

CONSENT_BUTTON = "press `Train without it`, below the data"


def require_startable(resolved: ResolvedJob, previews: Previews) -> dict[Path, str]:
    """Raise SpecError if the files, or the rows measured so far, say that a run would fail.

    Return the SHA-256 of the files. Raises OSError for a file that cannot be read.
    """
    resolved.require_trainable()
    hashes = {}
    reports = []
    eval_file = resolved.datasets.get("eval_dataset")
    for field, path in resolved.files:
        other = None if field == "eval_dataset" else eval_file
        report = checked_beside(path, resolved.job.stage, other)
        require_usable(field, path, report)
        hashes[path] = report.sha256
        reports.append((field, path.name, report))
        if refusals := report.refusals(resolved.job, field, path.name, CONSENT_BUTTON):
            raise SpecError(*refusals)
    require_one_kind(reports)
    if refusals := previews.refusals(resolved):
        raise SpecError(*refusals)
    return hashes


def show_start(answer: Answer, previews: Previews) -> Updates:
    """Say beside the start button why it cannot be pressed, if it cannot."""
    try:
        require_startable(answer.require(), previews)
    except SpecError as error:
        said = in_words(SpecError(error.problems[0]))
        num_more = len(error.problems) - 1
        more = f" And {num_more:,} more." if num_more else ""
        facts = render.notice(f"Cannot start. {said}.{more}", "bad")
        return {"start": gr.update(interactive=False), "start_facts": facts}
    except OSError as error:
        facts = render.notice(f"Cannot start. {error.strerror}: {error.filename}", "bad")
        return {"start": gr.update(interactive=False), "start_facts": facts}
    return {"start": gr.update(interactive=True), "start_facts": ""}
