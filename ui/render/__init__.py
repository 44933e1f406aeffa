"""Core objects as HTML and plotly figures, one module for each part of the page."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from core.job import Problem

NoticeKind = Literal["good", "bad", "warned", "plain"]

__all__ = [
    "comparison",
    "conversation",
    "dataset",
    "estimate",
    "exports",
    "history",
    "notice",
    "plots",
    "progress",
    "rows",
    "run",
    "sentences",
    "timeline",
    "top_line",
    "trace",
]


def notice(text: str, kind: NoticeKind = "good") -> str:
    """Return one line of text under a control, "" for no text. `Commands` are set as code."""
    if not text:
        return ""
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="notice {kind}">{shown}</p>'


def sentences(problem: Problem) -> str:
    """Return a problem and its fix as two sentences. Lines are named, other fields are not."""
    where = f"{problem.field}: " if problem.field.startswith("line ") else ""
    said = f"{where}{problem.problem}"
    if said.split(" ")[0].isalpha():  # not the name of a model or of a file
        said = f"{said[:1].upper()}{said[1:]}"
    fix = f"{problem.fix[:1].upper()}{problem.fix[1:]}"
    return " ".join(f"{text.rstrip('.')}." for text in (said, fix) if text)


def top_line(device: str) -> str:
    """Return the name of the app and what this machine has."""
    return f'<div class="top"><h1>Tailor</h1><span class="chip">{escape(device)}</span></div>'


def progress(text: str, share: float) -> str:
    """Return what is being done and a bar; `share` from 0 to 1."""
    return (
        f'<div class="waiting"><p>{escape(text)} ... {share:.0%}</p>'
        f'<div class="progress" role="progressbar" aria-label="{escape(text)}" '
        f'aria-valuenow="{100 * share:.0f}">'
        f'<span style="width:{share:.1%}"></span></div></div>'
    )


def table(rows: Iterable[Sequence[object]], heads: Sequence[str] = ()) -> str:
    """Return a table. The first cell of a row is its name, the first column has no head."""
    lines = ""
    if heads:
        cells = "".join(f"<th>{escape(head)}</th>" for head in heads)
        lines = f"<tr><td></td>{cells}</tr>"
    for name, *values in rows:
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in values)
        lines += f"<tr><th>{escape(str(name))}</th>{cells}</tr>"
    return f"<table>{lines}</table>"
