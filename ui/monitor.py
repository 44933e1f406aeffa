"""Layout of the Runs tab: list, chosen run with its plots, comparison. Reads nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import gradio as gr

from ui.checks import place_checks
from ui.exports import place_exports
from ui.form import LABELS
from ui.parts import Parts
from ui.place_boxes import RESUME, place_boxes
from ui.render.plots import COMPARISON, FRONT_ROW, PLOTS, empty

LIST_SCRIPT = Path(__file__).with_name("history.js")
Look = Literal["primary", "secondary", "stop"]
ACTIONS: Mapping[str, tuple[str, Look]] = {
    "stop": ("Stop and save", "stop"),
    "resume": ("Resume", "primary"),
    "move_up": ("Move up", "secondary"),
    "move_down": ("Move down", "secondary"),
    "try_run": ("Try it", "primary"),
    "next_stage": ("Next stage: DPO", "secondary"),
    "duplicate": ("Duplicate", "secondary"),
    "delete": ("Delete", "secondary"),
}
"""Buttons of a run: name -> (label, look). The state of the run decides which are visible."""
RETRY_BUTTONS = tuple(f"retry_{place}" for place in range(3))


def place_runs(parts: Parts) -> None:
    """Place the Runs tab here."""
    with gr.Row(elem_classes=["columns", "runs-columns"]):
        with gr.Column(scale=4, min_width=300, elem_classes="runs-list"):
            _place_list(parts)
        with gr.Column(scale=8, min_width=320):
            _place_comparisons(parts)
            with parts.add("comparison", gr.Column, visible=False):
                _place_plot(COMPARISON.id)
                parts.html("report")
                parts.html("differences")
            _place_run(parts)


def _place_comparisons(parts: Parts) -> None:
    """Place one comparison: its runs, and what can be done with them."""
    shown = {"open": False, "visible": False}
    with parts.add("comparisons_panel", gr.Accordion, "Comparisons", **shown):
        parts.add("comparison_id", gr.Dropdown, [], label="Comparison")
        parts.html("comparison_runs")
        with gr.Row(elem_classes="actions"):
            parts.button("stop_comparison", "Stop all", variant="stop", visible=False)
            parts.button("continue_comparison", "Continue", variant="primary", visible=False)
            parts.button("show_runs", "Show its curves")
        best = [("Best run", "best")]
        parts.add("chosen_trial", gr.Dropdown, best, value="best", label="One of its runs")
        with gr.Row(elem_classes="actions"):
            parts.button("use_settings", "Use these settings", variant="primary")
            parts.button("stop_trial", "Stop this run", visible=False)
        parts.html("comparison_message")


def _place_list(parts: Parts) -> None:
    """Place the list of runs. ui/history.js fills the hidden boxes."""
    hint = "Search: name, model, tag, state ..."
    bare = {"show_label": False, "container": False}
    parts.add("run_search", gr.Textbox, label="Search runs", placeholder=hint, **bare)
    parts.add("run_list", gr.HTML, js_on_load=LIST_SCRIPT.read_text(encoding="utf-8"))
    parts.signal("run_id")
    parts.signal("compared")
    parts.html("history_facts")
    parts.html("unreadable")
    parts.signal("unreadable_id")
    parts.button("restore", "Restore deleted run", visible=False)
    parts.button("empty_trash", "Empty trash", visible=False)


def _place_run(parts: Parts) -> None:
    """Place one run, from its state to its log."""
    parts.html("run_header")
    with gr.Row(elem_classes="actions"):
        for name, (label, look) in ACTIONS.items():
            parts.button(name, label, variant=look, visible=False)
    with gr.Row(elem_classes="actions"):
        for name in RETRY_BUTTONS:
            parts.button(name)
    hidden = {"open": False, "visible": False}
    with parts.add("resume_panel", gr.Accordion, "Resume on other devices", **hidden):
        _place_resume(parts)
    parts.html("run_message")
    parts.signal("figures")
    parts.html("tiles")
    for plot in FRONT_ROW:
        _place_plot(plot)
    parts.html("what_next")
    place_checks(parts)
    place_exports(parts)
    for name in ("memory_table", "answers"):
        parts.html(name)
    with gr.Accordion("More plots", open=False):
        for plot in PLOTS:
            if plot not in FRONT_ROW:
                _place_plot(plot)
    with gr.Accordion("Checkpoints", open=False):
        _place_checkpoints(parts)
    with gr.Accordion("Name, tags and notes", open=False):
        parts.add("title", gr.Textbox, label="Name", max_lines=1)
        parts.add("tags", gr.Textbox, label="Tags (comma-separated)", max_lines=1)
        parts.add("notes", gr.Textbox, label="Notes", lines=3)
        parts.signal("about_run")
        parts.button("save_about", "Save")
        parts.html("about_message")
    with gr.Accordion("Files", open=False):
        parts.html("files")
    with gr.Accordion("Log", open=False):
        shown = {"lines": 14, "max_lines": 14, "show_label": False, "interactive": False}
        parts.add("log", gr.Textbox, **shown)


def _place_resume(parts: Parts) -> None:
    """Place the number of devices and the place for a resume, and its button."""
    parts.html("resume_note")
    whole = {"precision": 0, "minimum": 1, "min_width": 140}
    with gr.Row(elem_classes="settings"):
        parts.add("resume_devices", gr.Number, 1, label=LABELS["num_devices"], **whole)
    place_boxes(parts, RESUME)
    with gr.Row(elem_classes="actions"):
        parts.button("resume_there", "Resume with these")


def _place_checkpoints(parts: Parts) -> None:
    """Place the list of checkpoints. ui/history.js fills the hidden box."""
    parts.html("checkpoints")
    parts.signal("published_step")
    with gr.Row(elem_classes="actions"):
        epochs = {"minimum": 0, "min_width": 120, "visible": False}
        parts.add("more_epochs", gr.Number, 1, label="More epochs", **epochs)
        parts.button("continue_run", "Train more epochs", visible=False)


def _place_plot(name: str) -> None:
    """Place a plot without points. ui/plots.js draws the figures into it."""
    gr.Plot(empty(name), show_label=False, elem_id=f"plot-{name}", container=False)
