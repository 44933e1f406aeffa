"""Reasons against a start, before it is pressed, and on what it trains. Starts nothing."""

from pathlib import Path

import gradio as gr

from core.dataset.report import require_one_kind
from core.device import card_of, find_preset, this_machine
from core.job import SpecError
from core.models import gpus
from core.resolve import ResolvedJob
from core.runs.engines import HERE
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


def missing_gpu_message(answer: Answer, where: str) -> str:
    """Say on what a start here would train if this machine lacks the chosen GPU."""
    wanted = gpus().get(str(answer.values.get("gpu")))
    if answer.resolved is None or wanted is None or where not in ("", HERE):
        return ""
    machine = this_machine()
    try:
        card = card_of(answer.resolved.job.device, machine)
    except SpecError as error:
        return render.notice(str(error), "warned")
    present = [find_preset(each.name, each.capacity_bytes) for each in machine.gpus]
    if card and find_preset(card.name, card.capacity_bytes) == wanted:
        return ""
    own = card.short_name if card else "CPU"
    name = wanted.name.removeprefix("GeForce ")
    said = f"This machine has no {name}: it will train on its {own}."
    if wanted in present:
        said = f"It will train on the {own}. For the {name}, set GPU index {present.index(wanted)}."
    return render.notice(said, "warned")
