"""Page: places the panels and wires every event to its handler by name."""

import json
from collections.abc import Collection
from functools import partial
from typing import Any

import gradio as gr

from core.dataset.intake import SPLITS, TABLES, TEXT_SUFFIXES
from ui import form, monitor, placing, trying
from ui.checks import CHECK_PARTS
from ui.comparing import place_compare, wire_compare
from ui.events import MESSAGE, Wiring
from ui.exports import EXPORT_BUTTONS, EXPORT_TILES
from ui.handlers import (
    FIRST_STATE,
    FIX_BUTTONS,
    NO_ANSWER,
    Handlers,
    Suggestions,
    Undo,
    columns,
    kept_form,
    panels,
)
from ui.parts import Parts
from ui.place_boxes import PLACE_BOXES, RESUME_BOXES
from ui.sent_data import CheckedBlocks

SET_FIGURES = "text => { window.tailorFigures = JSON.parse(text) }"
TOGGLE_DARK = """() => {
  localStorage.setItem("tailor-colours", document.body.classList.toggle("dark") ? "dark" : "light");
}"""
KEPT_FORM = """() => {
  try { return [localStorage.getItem("tailor-form") ?? ""]; }
  catch { return [""]; }
}"""
"""The form is kept in this browser, where it outlives a reload, a closed tab and the server."""
KEEP_FORM = """(plan, ...sent) => {{
  const values = Object.fromEntries({names}.map((name, index) => [name, sent[index]]));
  const kept = JSON.stringify({{ format: {format}, values, plan }});
  try {{ localStorage.setItem("tailor-form", kept); }}
  catch {{ /* a browser that keeps nothing */ }}
}}"""
SECONDS_BETWEEN_TICKS = 2.0
SECONDS_BETWEEN_POLLS = 0.7
"""While rows are measured, a step is traced or a table is imported."""
TOP_PARTS = (MESSAGE, "top_line", "active_run", "start", "fingerprint")
"""Parts outside the Runs tab that follow the runs."""
LENGTH_PARTS = ("lengths", "length_p95", "length_longest", "histogram", "lengths_timer", "measured")
START_PARTS = ("start", "start_facts", "command")
SUGGESTION_PARTS = ("suggestions", "fixes_title", *FIX_BUTTONS)
TRACE_PARTS = ("trace", "trace_timer", "check_exactly", "estimate", "wanted_trace")
PANEL_PARTS = ("open_panels", *panels.PANELS)
EXPORT_PARTS = (
    "take_panel",
    "export_timer",
    "export_status",
    "exports",
    "stop_export",
    "install_tools",
    "add_to_ollama",
    "export_base",
    "check_exports",
    "checked_export",
    "check_export",
    "publish_tile",
    "publish",
    *EXPORT_TILES.values(),
    *EXPORT_BUTTONS.values(),
)
VIEW_PARTS = ("run_id", "compared", "run_search", "about_run", "comparison_id")
"""What the user looks at on the Runs tab."""
SIGNALS = ("filled", "measured")
"""A new text in one of these hidden boxes is followed by an edit."""
UPLOADS = [".jsonl", ".json", *TABLES, *TEXT_SUFFIXES]


def build(handlers: Handlers) -> gr.Blocks:
    """Return the whole page."""
    parts = Parts()
    with CheckedBlocks(title="Tailor", analytics_enabled=False) as page:
        _place_states(parts)
        with gr.Row(elem_classes="top-row"):
            parts.html("top_line")
            parts.button("active_run")
            dark = gr.Button("Toggle dark mode", size="sm", elem_id="dark", min_width=40)
        parts.html(MESSAGE)
        with parts.add("tabs", gr.Tabs):
            with gr.Tab("Train", id="train"), gr.Row(elem_classes=["columns", "train-columns"]):
                with gr.Column(scale=6, min_width=320):
                    fields = _place_form(parts)
                with gr.Column(scale=5, min_width=320, elem_classes="sticky"):
                    _place_estimate(parts)
            train_parts = dict(parts.named)
            with gr.Tab("Runs", id="runs"):
                monitor.place_runs(parts)
            run_parts = parts.named.keys() - train_parts.keys()
            with parts.add("try_tab", gr.Tab, "Try", id="try"):
                trying.place_try(parts)
        groups = {
            "form": fields,
            "view": {name: parts.named[name] for name in VIEW_PARTS},
            "place": {name: parts.named[name] for name in PLACE_BOXES},
            "resume_place": {name: parts.named[name] for name in RESUME_BOXES},
            "boxes": {name: parts.named[name] for name in columns.COLUMN_BOXES},
            "try_settings": {name: parts.named[name] for name in trying.SETTINGS},
        }
        folders = handlers.guest_folders
        wiring = Wiring({**parts.named, **fields}, groups, folders)
        wiring.on(page.load, handlers.runs.on_load)
        _wire_data(wiring, handlers)
        _wire_rows(wiring, handlers)
        _wire_settings(wiring, handlers)
        _wire_estimate(wiring, handlers)
        _wire_edit(page, Wiring({**train_parts, **fields}, groups, folders), handlers)
        _wire_runs(wiring, handlers)
        _wire_comparisons(wiring, handlers)
        placing.wire_start(wiring, handlers, page.load)
        trying.wire_try(wiring, handlers)
        _wire_exports(wiring, handlers)
        _wire_checks(wiring, handlers)
        _wire_clock(wiring, handlers, (*TOP_PARTS, *run_parts))
        dark.click(None, js=TOGGLE_DARK)
    return page


def _place_states(parts: Parts) -> None:
    """Place what no user sees. What a handler must trust is a state, which stays on the server."""
    parts.state("form_state", FIRST_STATE)
    parts.state("answer", NO_ANSWER)
    parts.state("suggestions", Suggestions())
    parts.state("undo", Undo())
    parts.state("open_panels", {})
    parts.state("fingerprint", "")
    parts.state("import_id", "")
    parts.state("wanted_trace", "")
    parts.state("column_names", [])
    for name in (*SIGNALS, "changed", "kept_form", "kept_plan"):
        parts.signal(name)
    for name in ("import_timer", "lengths_timer", "trace_timer"):
        parts.timer(name, SECONDS_BETWEEN_POLLS)


def _place_form(parts: Parts) -> dict[str, Any]:
    """Place the left column, in the order in which a user decides. Return the controls."""
    fields = form.render("model")
    parts.html("continues_message")
    fields |= form.render("data")
    _place_data(parts)
    _place_rows(parts)
    fields |= form.render("method") | form.render("objective")
    with parts.add("stage_settings", gr.Row, elem_classes="settings", visible=False):
        fields |= form.render("stage")
    fields |= form.render("gpu") | form.render("profile")
    parts.html("plan")
    with gr.Row(elem_classes="main-settings"):
        fields |= form.render("main")
    parts.html("effective_batch")
    parts.add("reset_field", gr.Dropdown, [], label="Reset a setting", visible=False)
    with gr.Accordion("Advanced", open=False):
        for group, heading in form.ADVANCED.items():
            gr.HTML(f"<h2 class='group'>{heading}</h2>")
            with gr.Row(elem_classes="settings"):
                fields |= form.render(group)
        parts.button("reset_all", "Reset all settings")
    return fields


def _place_data(parts: Parts) -> None:
    """Place the upload, the report on the data, and what can be done with the file."""
    label = "Drop a file here: JSONL, JSON, CSV, Parquet or text"
    single = {"file_types": UPLOADS, "file_count": "single", "type": "filepath", "height": 96}
    parts.add("upload", gr.File, label=label, **single)
    parts.html("data_line")
    ways = [(way.capitalize(), split) for split, way in SPLITS.items()]
    parts.add("split_text", gr.Radio, ways, label="Rows of the text", visible=False)
    with gr.Row(elem_classes="actions"):
        parts.button("switch_stage")
        parts.button("train_without", "Train without it", visible=False)
        parts.button("keep_wanted", "Keep wanted rows", visible=False)
        parts.button("remove_rows", "Remove invalid rows", visible=False)
        parts.button("repair", "Repair file", visible=False)
        parts.button("import_data", "Import as JSONL", visible=False)
        parts.button("cancel_import", "Cancel", visible=False)
    parts.html("data_message")
    with parts.add("columns_panel", gr.Accordion, "Columns", open=False, visible=False):
        parts.add("row_format", gr.Dropdown, label="Row format")
        with gr.Row(elem_classes="settings"):
            for box in columns.COLUMN_BOXES:
                parts.add(box, gr.Dropdown, visible=False, min_width=140)
        parts.button("map_columns", "Use these columns")


def _place_rows(parts: Parts) -> None:
    """Place how long the rows are, and each row as the model will see it."""
    bare = {"show_label": False, "container": False}
    parts.html("lengths")
    with gr.Row(elem_classes="actions"):
        parts.button("length_p95")
        parts.button("length_longest")
    with parts.add("rows_panel", gr.Accordion, "Preview rows as the model sees them", open=False):
        parts.html("histogram")
        with gr.Row(elem_classes="row-picker"):
            parts.button("previous_row", "◀", min_width=40)
            parts.add("row_number", gr.Number, 1, precision=0, min_width=80, **bare)
            parts.button("next_row", "▶", min_width=40)
            hint = "Search the rows, or: line 27"
            parts.add("row_query", gr.Textbox, placeholder=hint, min_width=160, **bare)
        parts.html("row")


def _place_estimate(parts: Parts) -> None:
    """Place the right column, always in view: the estimate, the fixes and the start button."""
    gr.HTML("<h2>Will it fit?</h2>")
    parts.html("estimate")
    parts.html("speed")
    with gr.Row(elem_classes="actions"):
        parts.button("check_exactly", "Check exactly")
    parts.html("trace")
    parts.html("fixes_title")
    with gr.Row(elem_classes="fixes-row"):
        for name in FIX_BUTTONS:
            parts.button(name)
        parts.button("undo_fix", "Undo", visible=False)
    placing.place_start(parts)
    place_compare(parts)
    with parts.add("timeline_panel", gr.Accordion, "Memory during one step", open=False):
        parts.html("timeline", "Computing ...")
    with parts.add("what_fits_panel", gr.Accordion, "What fits where", open=False):
        parts.html("what_fits", "Computing ...")
    with parts.add("card_models_panel", gr.Accordion, "Which models for my card", open=False):
        parts.html("card_models", "Computing ... (some seconds the first time)")
    code = {"show_label": False, "wrap_lines": True, "show_line_numbers": False}
    with gr.Accordion("Command line", open=False):
        parts.add("command", gr.Code, language="shell", interactive=False, **code)
    with gr.Accordion("Job file", open=False):
        gr.Markdown("Copy it to keep the job. Paste one here to load it into the form.")
        text = {"language": "json", "interactive": True, "max_lines": 16}
        parts.add("job_file", gr.Code, **text, **code)
        parts.button("load_job_file", "Load into the form")
        parts.html("job_file_message")


def _wire_edit(page: gr.Blocks, wiring: Wiring, handlers: Handlers) -> None:
    """Wire everything that may have changed the form: the estimate first, then the rest.

    All causes share one event, of which one is under way at a time and the last one always runs
    afterwards. So no answer belongs to an older form, and no key press is lost.
    """
    parts, estimate = wiring.components, handlers.estimate
    fields = wiring.groups["form"]
    on = partial(wiring.on, repeat="always_last")
    causes = [control.input for control in fields.values()]
    wiring.on(page.load, kept_form.on_restore, js=KEPT_FORM)
    keep = partial(wiring.on_browser, js=_keep_script(fields), inputs=("kept_plan", *fields))
    keep(partial(gr.on, causes))  # at once: the server may be gone
    causes += [parts[name].change for name in SIGNALS]
    edited = on(partial(gr.on, causes), estimate.on_edit)
    keep(edited.then)
    measured = on(edited.then, handlers.rows.on_lengths, outputs=LENGTH_PARTS)
    known = on(measured.then, handlers.on_start_facts, outputs=START_PARTS)
    suggested = on(known.then, estimate.on_suggest, outputs=SUGGESTION_PARTS)
    on(suggested.then, panels.on_redraw_panels, outputs=PANEL_PARTS)
    chosen_card = [page.load, fields["gpu"].change, fields["stage"].change]
    on(partial(gr.on, chosen_card), panels.on_card, queue=True, outputs=("model",))


def _keep_script(fields: Collection[str]) -> str:
    """Return the script that keeps the form in the browser."""
    names = json.dumps(list(fields))
    return KEEP_FORM.format(format=kept_form.FORMAT, names=names)


def _wire_data(wiring: Wiring, handlers: Handlers) -> None:
    """Wire where the data comes from and how it is rewritten. What reads a whole file is queued."""
    on, parts, data = wiring.on, wiring.components, handlers.data
    on(parts["upload"].upload, data.on_upload, queue=True, fills=True)
    on(parts["import_data"].click, data.on_import, fills=True)
    on(parts["import_timer"].tick, data.on_import_progress, fills=True)
    on(parts["cancel_import"].click, data.on_cancel_import)
    on(parts["row_format"].input, columns.on_row_format)
    on_map_columns = partial(columns.on_map_columns, handlers.home)
    on(parts["map_columns"].click, on_map_columns, queue=True, fills=True)
    on(parts["train_without"].click, data.on_train_without, fills=True)
    on(parts["switch_stage"].click, data.on_switch_stage, fills=True)
    on(parts["split_text"].input, data.on_split_text, queue=True, fills=True)
    on(parts["keep_wanted"].click, data.on_keep_wanted, queue=True, fills=True)
    on(parts["remove_rows"].click, data.on_remove_rows, queue=True, fills=True)
    on(parts["repair"].click, data.on_repair, queue=True, fills=True)


def _wire_rows(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the preview of the rows. What asks the tokenizer may have to wait for it."""
    on, parts, rows = wiring.on, wiring.components, handlers.rows
    more_measured = on(parts["lengths_timer"].tick, rows.on_lengths, outputs=LENGTH_PARTS)
    on(more_measured.then, handlers.on_start_facts, outputs=START_PARTS)
    on(parts["length_p95"].click, partial(rows.on_set_length, "p95"), queue=True, fills=True)
    on(parts["length_longest"].click, partial(rows.on_set_length, "max"), queue=True, fills=True)
    on(parts["rows_panel"].expand, rows.on_row, queue=True)
    on(parts["row_number"].submit, rows.on_row, queue=True)
    on(parts["next_row"].click, partial(rows.on_turn, 1), queue=True)
    on(parts["previous_row"].click, partial(rows.on_turn, -1), queue=True)
    on(parts["row_query"].submit, rows.on_find_row, queue=True)


def _wire_settings(wiring: Wiring, handlers: Handlers) -> None:
    """Wire what puts values into the form: resets, the job file, fixes and their undo."""
    on, parts, estimate = wiring.on, wiring.components, handlers.estimate
    on(parts["reset_all"].click, estimate.on_reset_all, fills=True)
    on(parts["reset_field"].input, estimate.on_reset_field, fills=True)
    on(parts["load_job_file"].click, estimate.on_job_file, fills=True)
    for place, name in enumerate(FIX_BUTTONS):
        on(parts[name].click, partial(estimate.on_fix, place), fills=True)
    on(parts["undo_fix"].click, estimate.on_undo_fix, fills=True)


def _wire_estimate(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the panels beside the estimate, the exact check and the start."""
    on, parts, trace = wiring.on, wiring.components, handlers.trace
    for name in panels.PANELS:
        panel = parts[f"{name}_panel"]
        on(panel.expand, partial(panels.on_open_panel, name), outputs=PANEL_PARTS)
        on(panel.collapse, partial(panels.on_close_panel, name), outputs=PANEL_PARTS)
    on(parts["check_exactly"].click, trace.on_check_exactly, outputs=TRACE_PARTS)
    on(parts["trace_timer"].tick, trace.on_trace_progress, outputs=TRACE_PARTS)
    wire_compare(wiring, handlers)


def _wire_runs(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the Runs tab. What fills the form leads to the Train tab."""
    on, parts, runs = wiring.on, wiring.components, handlers.runs
    for name in ("run_id", "compared", "run_search"):
        on(parts[name].input, runs.on_view, repeat="always_last")
    on(parts["stop"].click, runs.on_stop)
    on(parts["resume"].click, runs.on_resume)
    placing.wire_resume(wiring, handlers)
    on(parts["move_up"].click, partial(runs.on_move, "up"))
    on(parts["move_down"].click, partial(runs.on_move, "down"))
    on(parts["delete"].click, runs.on_delete)
    on(parts["unreadable_id"].input, runs.on_delete_unreadable)
    on(parts["restore"].click, runs.on_restore)
    on(parts["empty_trash"].click, runs.on_empty_trash)
    on(parts["published_step"].input, handlers.results.on_publish, queue=True)
    on(parts["continue_run"].click, handlers.results.on_continue, queue=True)
    on(parts["save_about"].click, runs.on_save_about)
    on(parts["duplicate"].click, runs.on_duplicate, fills=True)
    on(parts["next_stage"].click, runs.on_next_stage, fills=True)
    for place, name in enumerate(monitor.RETRY_BUTTONS):
        on(parts[name].click, partial(runs.on_retry, place), fills=True)
    on(parts["active_run"].click, runs.on_active_run)
    parts["figures"].change(None, parts["figures"], js=SET_FIGURES)


def _wire_comparisons(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the panel of comparisons. What continues one copies data, and is queued."""
    on, parts, comparisons = wiring.on, wiring.components, handlers.comparisons
    on(parts["comparison_id"].input, comparisons.on_choose_comparison, repeat="always_last")
    on(parts["stop_comparison"].click, comparisons.on_stop_comparison)
    on(parts["continue_comparison"].click, comparisons.on_continue_comparison, queue=True)
    on(parts["stop_trial"].click, comparisons.on_stop_trial)
    on(parts["show_runs"].click, comparisons.on_show_runs)
    on(parts["use_settings"].click, comparisons.on_use_settings, fills=True)


def _wire_exports(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the panel that takes a result to other programs. A download of converters is queued."""
    on, parts, exports = wiring.on, wiring.components, handlers.exports
    for wanted, button in EXPORT_BUTTONS.items():
        on(parts[button].click, partial(exports.on_export, wanted))
    for name in ("export_quant", "export_base"):
        on(parts[name].input, exports.on_export_settings, repeat="always_last")
    on(parts["export_timer"].tick, exports.on_export_tick, outputs=EXPORT_PARTS)
    on(parts["publish"].click, exports.on_publish)
    on(parts["show_card"].click, exports.on_show_card, outputs=("export_card",))
    on(parts["stop_export"].click, exports.on_stop_export)
    on(parts["check_export"].click, exports.on_check_export)
    on(parts["install_tools"].click, exports.on_install_tools)
    on(parts["add_to_ollama"].click, exports.on_add_to_ollama, queue=True)


def _wire_checks(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the panel that checks a run."""
    parts, checks = wiring.components, handlers.checks
    for event, handler in (
        (parts["run_check"].click, checks.on_check),
        (parts["stop_check"].click, checks.on_stop_check),
        (parts["check_timer"].tick, checks.on_check_tick),
        (parts["make_identity"].click, checks.on_make_identity),
        (parts["make_held_out"].click, checks.on_make_held_out),
    ):
        wiring.on(event, handler, outputs=CHECK_PARTS)


def _wire_clock(wiring: Wiring, handlers: Handlers, shown: Collection[str]) -> None:
    """Poll the disk; refresh the run panels only when something changed."""
    tick, changed = gr.Timer(SECONDS_BETWEEN_TICKS).tick, wiring.components["changed"].change
    wiring.on(tick, handlers.runs.on_tick, outputs=("changed",))
    wiring.on(changed, handlers.runs.on_changed, repeat="always_last", outputs=shown)
