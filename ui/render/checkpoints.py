"""Checkpoints of a run as an HTML table, each with a button that makes it the result."""

from collections.abc import Sequence
from html import escape

from core.runs.results import UNDO, ListedCheckpoint
from core.wording import memory

USE = "Use this one"
UNDO_LABEL = "Use the result of the training again"


def checkpoints(listed: Sequence[ListedCheckpoint], can_publish: bool, can_undo: bool) -> str:
    """Return the table. ui/history.js reports which button was pressed."""
    if not listed:
        return '<div class="measured checkpoints"><p>There are no checkpoints yet.</p></div>'
    heads = "".join(f"<th>{head}</th>" for head in ("step", "evaluation", "size", "", ""))
    rows = "".join(_row(each, can_publish) for each in listed)
    undo = ""
    if can_undo:
        undo = f'<p><button type="button" data-publish="{UNDO}">{UNDO_LABEL}</button></p>'
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="measured checkpoints">{table}{undo}</div>'


def _row(each: ListedCheckpoint, can_publish: bool) -> str:
    marks = []
    if each.is_best:
        marks.append("★ best")
    if each.is_result:
        marks.append("the result")
    if not each.is_complete:
        marks.append("incomplete, never used")
    value = "–" if each.value is None else f"{each.value:.4g}"
    button = ""
    if can_publish and each.is_complete and not each.is_result:
        label = f"Use the checkpoint of step {each.step:,}"
        button = (
            f'<button type="button" data-publish="{each.step}" aria-label="{label}">{USE}</button>'
        )
    cells = (f"{each.step:,}", value, memory(each.num_bytes), escape(", ".join(marks)), button)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
