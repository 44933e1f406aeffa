"""The Runs tab: the list, the chosen run with its plots, the comparison. Places and names components; reads nothing."""

from pathlib import Path
from typing import Any, Literal

import gradio as gr

from ui.render.plots import ALWAYS_SHOWN, COMPARISON, PLOTS, empty

SHOWN_REMEDIES = 3
LIST_SCRIPT = Path(__file__).with_name("history.js")


def render() -> dict[str, Any]:
    """Places the tab where the page stands now: {name: component}."""
    with gr.Row(elem_classes=["columns", "runs-columns"]):
        with gr.Column(scale=4, min_width=300, elem_classes="runs-list"):
            named = _list()
        with gr.Column(scale=8, min_width=320):
            with gr.Column(visible=False) as comparison:
                _place_plot(COMPARISON.id)
                named["differences"] = gr.HTML(elem_id="differences")
            named |= {"comparison": comparison} | _run()
    return named


def _list() -> dict[str, Any]:
    """What there is, to search and to choose from. The hidden boxes are filled by ui/history.js."""
    return {
        "run_search": gr.Textbox(
            label="Search the runs",
            placeholder="Search: a name, model, tag, state ...",
            show_label=False,
            container=False,
            elem_id="run-search",
        ),
        "run_list": gr.HTML(elem_id="run-list", js_on_load=LIST_SCRIPT.read_text(encoding="utf-8")),
        "run_id": gr.Textbox(visible="hidden", elem_id="run-id"),
        "compared": gr.Textbox(visible="hidden", elem_id="compared"),
        "history_facts": gr.HTML(elem_id="history-facts"),
        "restore": gr.Button("Undo the deletion", visible=False, size="sm", elem_id="restore"),
        "empty_trash": gr.Button(
            "Empty the trash for good", visible=False, size="sm", elem_id="empty-trash"
        ),
    }


def _run() -> dict[str, Any]:
    """One run, from what it is doing to its log."""
    named: dict[str, Any] = {"run_header": gr.HTML(elem_id="run-header")}
    with gr.Row(elem_classes="actions"):
        for name, label, look in ACTIONS:
            named[name] = gr.Button(
                label, variant=look, size="sm", visible=False, elem_id=name.replace("_", "-")
            )
    with gr.Row(elem_classes="actions"):
        for place in range(SHOWN_REMEDIES):
            named[f"remedy_{place}"] = gr.Button(
                "", visible=False, size="sm", elem_id=f"remedy-{place}"
            )
    named["run_message"] = gr.HTML(elem_id="run-message")
    named["figures"] = gr.Textbox(visible="hidden", elem_id="figures")
    named["tiles"] = gr.HTML(elem_id="tiles")
    for plot in ALWAYS_SHOWN:
        _place_plot(plot)
    for name in ("what_next", "memory_table", "answers"):
        named[name] = gr.HTML(elem_id=name.replace("_", "-"))
    with gr.Accordion("More plots", open=False):
        for plot in PLOTS:
            if plot not in ALWAYS_SHOWN:
                _place_plot(plot)
    with gr.Accordion("Name, tags and notes", open=False, elem_id="about"):
        named["title"] = gr.Textbox(label="Name", max_lines=1, elem_id="title")
        named["tags"] = gr.Textbox(label="Tags, with commas", max_lines=1, elem_id="tags")
        named["notes"] = gr.Textbox(label="Notes", lines=3, elem_id="notes")
        named["written_of"] = gr.Textbox(visible="hidden", elem_id="written-of")
        named["annotate"] = gr.Button("Save", size="sm", elem_id="annotate")
        named["about_message"] = gr.HTML(elem_id="about-message")
    with gr.Accordion("Files", open=False):
        named["files"] = gr.HTML(elem_id="files")
    with gr.Accordion("Log", open=False):
        named["log"] = gr.Textbox(
            lines=14, max_lines=14, show_label=False, elem_id="log", interactive=False
        )
    return named


Look = Literal["primary", "secondary", "stop"]
ACTIONS: tuple[tuple[str, str, Look], ...] = (
    ("stop", "Stop and save", "stop"),
    ("resume", "Resume", "primary"),
    ("sooner", "Sooner", "secondary"),
    ("later", "Later", "secondary"),
    ("next_stage", "Next stage: DPO", "secondary"),
    ("reuse", "Use these settings", "secondary"),
    ("delete", "Delete", "secondary"),
)
"""(name, label, look) of the buttons at a run; which of them can be seen depends on its state."""


def _place_plot(name: str) -> None:
    """A plot without points; ui/plots.js draws the figures into it."""
    gr.Plot(empty(name), show_label=False, elem_id=f"plot-{name}", container=False)
