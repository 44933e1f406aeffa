"""The menu of data: the demo, and the files of rows that a person brought."""

from pathlib import Path

import gradio as gr

from core.runs import Home, kept_rows
from core.wording import ago
from ui.form import DEMO_DATA
from ui.handlers.shown import Shown

MOST_LISTED = 30


def taken_up(home: Home, path: Path) -> Shown:
    """A file becomes the data of the form, by its name in the menu."""
    return {"dataset": gr.update(choices=data_choices(home), value=str(path))}


def data_choices(home: Home) -> list[tuple[str, str]]:
    """(what a person reads, value) of the demo and of what was brought, the newest first."""
    brought = [
        (f"{path.name} · {ago(path.stat().st_mtime)}", str(path))
        for path in kept_rows(home, MOST_LISTED)
    ]
    return [DEMO_DATA, *brought]
