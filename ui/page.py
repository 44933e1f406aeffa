"""The page: places the panels, and joins every event to its handler by name."""

from functools import partial
from typing import Any

import gradio as gr

from ui import form, monitor
from ui.events import Joiner, Named
from ui.handlers import COLUMN_BOXES, SHOWN_FIXES, Handlers
from ui.monitor import SHOWN_REMEDIES

HAND_OVER_FIGURES = "text => { window.tailorFigures = JSON.parse(text) }"
TOGGLE_DARK = """() => {
  localStorage.setItem("tailor-colours", document.body.classList.toggle("dark") ? "dark" : "light");
}"""
SECONDS_BETWEEN_TICKS = 2.0
SHOWN_ABOVE = ("top", "live", "start", "seen")
"""What else the runs have a say in."""
LENGTHS = ("lengths", "length_p95", "length_longest", "histogram", "measuring", "measured")
SUGGESTIONS = ("fixes", "fixes_title", *(f"fix_{place}" for place in range(SHOWN_FIXES)), "speed")
EXACT_CHECK = ("exact", "checking", "check_exactly", "estimate")
"""What is said of the rows, of a job that was estimated, and of a step that is traced."""
UNFOLDING = ("timeline", "what_fits")
"""Pictures of the job that are only drawn while they are unfolded."""
SECONDS_BETWEEN_LOOKS = 0.7
"""At how far the measuring of the rows, or a trace, has come."""

SIGNALS = ("filled", "measured")
"""Boxes that nobody sees: a new text in one of them is followed by an edit. A `gr.State` would not do, since events
that bypass the queue do not tell the browser that it changed."""


def build(handlers: Handlers) -> gr.Blocks:
    """The whole page over the handlers of its events."""
    with gr.Blocks(title="Tailor", analytics_enabled=False) as page:
        named: dict[str, Any] = {
            name: gr.State({}) for name in ("marks", "fixes", "before_fix", "unfolded")
        }
        named |= {"seen": gr.State("")} | {
            name: gr.Textbox(visible="hidden") for name in (*SIGNALS, "news")
        }
        with gr.Row(elem_classes="top-row"):
            named["top"] = gr.HTML(elem_id="top")
            named["live"] = gr.Button("", visible=False, size="sm", elem_id="live")
            dark = gr.Button("Light or dark", size="sm", elem_id="dark", min_width=40)
        with gr.Tabs(elem_id="tabs") as named["tabs"]:
            with gr.Tab("Train", id="train"), gr.Row(elem_classes=["columns", "train-columns"]):
                with gr.Column(scale=6, min_width=320):
                    fields = _place_form(named)
                with gr.Column(scale=5, min_width=320, elem_classes="sticky"):
                    _place_estimate(named)
            with gr.Tab("Runs", id="runs"):
                of_runs = monitor.render()
        join = Joiner(named | fields | of_runs, fields)
        join.on(page.load, handlers.on_load, {})
        _wire(join, handlers)
        _wire_edit(page, Joiner(named | fields, fields), handlers)
        _wire_runs(join, handlers)
        _wire_clock(join, handlers, (*SHOWN_ABOVE, *of_runs))
        dark.click(None, js=TOGGLE_DARK)
    return page


def _place_form(named: dict[str, Any]) -> dict[str, Any]:
    """The left column, in the order a person decides."""
    fields = form.render("model")
    named["goes_on"] = gr.HTML(elem_id="goes-on")
    fields |= form.render("data")
    named["upload"] = gr.File(
        label="Drop a file here: JSONL, JSON, CSV or Parquet",
        file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet"],
        file_count="single",
        type="filepath",
        height=96,
        elem_id="upload",
    )
    named["data_line"] = gr.HTML(elem_id="data-line")
    with gr.Row(elem_classes="actions"):
        named["usual_stage"] = gr.Button("", visible=False, size="sm", elem_id="usual-stage")
        named["drop_rows"] = gr.Button(
            "Drop the bad rows", visible=False, size="sm", elem_id="drop-rows"
        )
        named["repair"] = gr.Button("Repair the file", visible=False, size="sm", elem_id="repair")
        named["take_in"] = gr.Button(
            "Take it in as JSON lines", visible=False, size="sm", elem_id="take-in"
        )
        named["cancel_taking"] = gr.Button(
            "Cancel", visible=False, size="sm", elem_id="cancel-taking"
        )
    named["mended"] = gr.HTML(elem_id="mended")
    named |= {"taken": gr.State(""), "taking": gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)}
    with gr.Accordion("Columns", open=False, visible=False, elem_id="columns-panel") as named[
        "columns_panel"
    ]:
        named["names"] = gr.State([])
        named["kind"] = gr.Dropdown(label="What the rows are", elem_id="kind")
        with gr.Row(elem_classes="settings"):
            named |= {
                box: gr.Dropdown(visible=False, min_width=140, elem_id=box) for box in COLUMN_BOXES
            }
        named["map_columns"] = gr.Button("Use these columns", size="sm", elem_id="map-columns")
    _place_rows(named)
    fields |= form.render("method") | form.render("objective")
    with gr.Row(elem_classes="settings", visible=False) as named["stage_settings"]:
        fields |= form.render("stage")
    fields |= form.render("gpu") | form.render("profile")
    named["choices"] = gr.HTML(elem_id="choices")
    with gr.Row(elem_classes="main-settings"):
        fields |= form.render("main")
    named["effective_batch"] = gr.HTML(elem_id="effective-batch")
    named["put_back"] = gr.Dropdown(
        [], label="Put a setting back", visible=False, elem_id="put-back"
    )
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        for group, heading in form.ADVANCED.items():
            gr.Markdown(f"#### {heading}")
            with gr.Row(elem_classes="settings"):
                fields |= form.render(group)
        named["reset"] = gr.Button(
            "Put every setting back to its default", size="sm", elem_id="reset"
        )
    return fields


def _place_rows(named: dict[str, Any]) -> None:
    """How long the rows are, and each of them as the model will see it."""
    named["measuring"] = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)
    named["lengths"] = gr.HTML(elem_id="lengths")
    with gr.Row(elem_classes="actions"):
        named["length_p95"] = gr.Button("", visible=False, size="sm", elem_id="length-p95")
        named["length_longest"] = gr.Button("", visible=False, size="sm", elem_id="length-longest")
    with gr.Accordion("The rows as the model sees them", open=False, elem_id="rows") as named[
        "rows_panel"
    ]:
        named["histogram"] = gr.HTML(elem_id="histogram")
        with gr.Row(elem_classes="row-picker"):
            named["previous_row"] = gr.Button("◀", size="sm", min_width=40, elem_id="previous-row")
            named["row_number"] = gr.Number(
                1,
                precision=0,
                show_label=False,
                container=False,
                min_width=80,
                elem_id="row-number",
            )
            named["next_row"] = gr.Button("▶", size="sm", min_width=40, elem_id="next-row")
            named["wanted"] = gr.Textbox(
                placeholder="Find in the rows, or: line 27",
                show_label=False,
                container=False,
                min_width=160,
                elem_id="wanted",
            )
        named["row"] = gr.HTML(elem_id="row")


def _place_estimate(named: dict[str, Any]) -> None:
    """The right column, always in view: will it fit, and the one big button."""
    gr.HTML("<h3>Will it fit?</h3>")
    named["estimate"] = gr.HTML(elem_id="estimate")
    named["speed"] = gr.HTML(elem_id="speed")
    with gr.Row(elem_classes="actions"):
        named["check_exactly"] = gr.Button("Check exactly", size="sm", elem_id="check-exactly")
    named["exact"] = gr.HTML(elem_id="exact")
    named["checking"] = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)
    named["fixes_title"] = gr.HTML(elem_id="fixes-title")
    with gr.Row(elem_classes="fixes-row"):
        for place in range(SHOWN_FIXES):
            named[f"fix_{place}"] = gr.Button("", visible=False, size="sm", elem_id=f"fix-{place}")
        named["undo"] = gr.Button("Undo", visible=False, size="sm", elem_id="undo")
    named["start"] = gr.Button("Start training", variant="primary", size="lg", elem_id="start")
    named["start_message"] = gr.HTML(elem_id="start-message")
    with gr.Accordion("Inside one step", open=False) as named["timeline_panel"]:
        named["timeline"] = gr.HTML("Computing ...", elem_id="timeline")
    with gr.Accordion("What fits where", open=False) as named["what_fits_panel"]:
        named["what_fits"] = gr.HTML("Computing ...", elem_id="what-fits")
    code: dict[str, Any] = {"show_label": False, "wrap_lines": True, "show_line_numbers": False}
    with gr.Accordion("The same from a terminal", open=False):
        named["command"] = gr.Code(language="shell", elem_id="command", interactive=False, **code)
    with gr.Accordion("Job file", open=False):
        gr.Markdown("Copy it to keep the job; paste one here to fill the form from it.")
        named["job_file"] = gr.Code(
            language="json", elem_id="job-file", interactive=True, max_lines=16, **code
        )
        named["read_job_file"] = gr.Button(
            "Fill the form from this", size="sm", elem_id="read-job-file"
        )
        named["job_file_message"] = gr.HTML(elem_id="job-file-message")


def _wire(join: Joiner, handlers: Handlers) -> None:
    """Every event of the Train tab. What `join.fill` joins may put values into the form, and an edit follows."""
    named, fields = join.named, join.fields
    _wire_data(join, handlers, fields)
    _wire_rows(join, handlers, fields)
    identity = {name: fields[name] for name in ("model", "method", "stage")}
    join.fill(named["reset"].click, handlers.on_reset, {"marks": named["marks"]} | identity)
    one = {"field": named["put_back"], "marks": named["marks"]} | identity
    join.fill(named["put_back"].input, handlers.on_put_back, one)
    join.fill(named["read_job_file"].click, handlers.on_job_file, {"text": named["job_file"]})
    for place in range(SHOWN_FIXES):
        press = partial(handlers.on_fix, place)
        join.fill(named[f"fix_{place}"].click, press, {"fixes": named["fixes"], **fields})
    join.fill(named["undo"].click, handlers.on_undo, {"before_fix": named["before_fix"]})
    unfolded = {"unfolded": named["unfolded"]}
    for name in UNFOLDING:
        panel, handler = named[f"{name}_panel"], getattr(handlers, f"on_{name}")
        join.on(panel.expand, handler, unfolded | dict(fields))
        join.on(panel.collapse, partial(handlers.on_fold, name), unfolded)
    join.on(named["check_exactly"].click, handlers.on_check_exactly, fields, shows=EXACT_CHECK)
    join.on(named["checking"].tick, handlers.on_checking, fields, shows=EXACT_CHECK)
    join.on(named["start"].click, handlers.on_start, fields, quick=False)


def _wire_edit(page: gr.Blocks, join: Joiner, handlers: Handlers) -> None:
    """Whatever may have changed the form: the estimate at once, then the rows, then what would make it better.

    One event for all of it, of which one is under way at a time and the last one always comes: an answer never belongs
    to a form that was overtaken, and no key pressed while one is under way is lost.
    """
    named, fields = join.named, join.fields
    causes = [
        *(each.input for each in fields.values()),
        page.load,
        *(named[name].change for name in SIGNALS),
    ]
    known = {name: named[name] for name in ("marks", "fixes", "before_fix")}
    edited = join.on(
        partial(gr.on, causes), handlers.on_edit, known | dict(fields), overtaken="always_last"
    )
    measured = join.on(
        edited.then, handlers.on_lengths, fields, overtaken="always_last", shows=LENGTHS
    )
    suggested = {"marks": named["marks"], **fields}
    better = join.on(
        measured.then, handlers.on_suggest, suggested, overtaken="always_last", shows=SUGGESTIONS
    )
    drawn = {"unfolded": named["unfolded"], **fields}
    join.on(
        better.then,
        handlers.on_unfolded,
        drawn,
        overtaken="always_last",
        shows=("unfolded", *UNFOLDING),
    )


def _wire_data(join: Joiner, handlers: Handlers, fields: Named) -> None:
    """Where the data comes from, and what is done to it before it is used. What reads a whole file may wait."""
    named = join.named
    data = {name: fields[name] for name in ("dataset", "stage")}
    join.fill(named["upload"].upload, handlers.on_upload, {"upload": named["upload"]}, quick=False)
    join.fill(named["take_in"].click, handlers.on_take_in, {"dataset": fields["dataset"]})
    join.fill(named["taking"].tick, handlers.on_taking, {"taken": named["taken"]})
    join.on(named["cancel_taking"].click, handlers.on_cancel_taking, {"taken": named["taken"]})
    kind = {"kind": named["kind"]}
    join.on(named["kind"].input, handlers.on_kind, kind | {"names": named["names"]})
    boxes = {box: named[box] for box in COLUMN_BOXES}
    join.fill(named["map_columns"].click, handlers.on_map_columns, data | kind | boxes, quick=False)
    join.fill(named["usual_stage"].click, handlers.on_usual_stage, data)
    join.fill(named["drop_rows"].click, handlers.on_drop_rows, data, quick=False)
    join.fill(named["repair"].click, handlers.on_repair, data, quick=False)


def _wire_rows(join: Joiner, handlers: Handlers, fields: Named) -> None:
    """The look at the data. What asks the tokenizer may have to wait for it."""
    named = join.named
    join.on(named["measuring"].tick, handlers.on_lengths, fields, shows=LENGTHS)
    for name, handler in (
        ("length_p95", handlers.on_length_p95),
        ("length_longest", handlers.on_length_longest),
    ):
        join.fill(named[name].click, handler, fields, quick=False)
    shown = {"row_number": named["row_number"], **fields}
    join.on(named["rows_panel"].expand, handlers.on_row, shown, quick=False)
    join.on(named["row_number"].submit, handlers.on_row, shown, quick=False)
    join.on(named["next_row"].click, handlers.on_next_row, shown, quick=False)
    join.on(named["previous_row"].click, handlers.on_previous_row, shown, quick=False)
    join.on(
        named["wanted"].submit,
        handlers.on_find_row,
        {"wanted": named["wanted"], **shown},
        quick=False,
    )


def _wire_runs(join: Joiner, handlers: Handlers) -> None:
    """The Runs tab. What fills the form leads over to the Train tab."""
    named, view = join.named, _view(join.named)
    join.on(named["run_id"].input, handlers.on_pick, view, overtaken="always_last")
    for name in ("compared", "run_search"):
        join.on(named[name].input, handlers.on_view, view, overtaken="always_last")
    for name in ("stop", "resume", "delete", "restore", "empty_trash"):
        join.on(named[name].click, getattr(handlers, f"on_{name}"), view)
    join.on(named["sooner"].click, partial(handlers.on_move, "up"), view)
    join.on(named["later"].click, partial(handlers.on_move, "down"), view)
    about = {name: named[name] for name in ("title", "tags", "notes")}
    join.on(named["annotate"].click, handlers.on_annotate, {**view, **about})
    picked = {"run_id": named["run_id"]}
    for name in ("reuse", "next_stage"):
        join.fill(named[name].click, getattr(handlers, f"on_{name}"), picked)
    for place in range(SHOWN_REMEDIES):
        join.fill(named[f"remedy_{place}"].click, partial(handlers.on_remedy, place), picked)
    join.on(named["live"].click, handlers.on_live, {})
    named["figures"].change(None, named["figures"], js=HAND_OVER_FIGURES)


def _wire_clock(join: Joiner, handlers: Handlers, shown: tuple[str, ...]) -> None:
    """What happens by itself: a glance at the disk, and everything `shown` of the runs only if that has changed."""
    inputs = _view(join.named) | {"seen": join.named["seen"]}
    join.on(gr.Timer(SECONDS_BETWEEN_TICKS).tick, handlers.on_tick, inputs, shows=("news",))
    join.on(
        join.named["news"].change, handlers.on_news, inputs, overtaken="always_last", shows=shown
    )


def _view(named: Named) -> dict[str, Any]:
    """What a person looks at on the Runs tab."""
    return {name: named[name] for name in ("run_id", "compared", "run_search", "written_of")}
