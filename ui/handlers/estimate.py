"""Form events: answer an edit, offer fixes, undo them, reset fields. Starts no run."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from core.advise import Fix
from core.device import cards_together, this_machine
from core.job import Cure, JobSpec, SpecError
from core.runs import Home
from core.training.contract.job import BATCH_FIELDS
from core.wording import fix_label, sentences_of_several_devices, speed_sentence
from ui import render
from ui.events import Updates
from ui.form import LABELS, controls, first_values
from ui.handlers.answer import (
    IDENTITY,
    Answer,
    FieldMark,
    FormState,
    Values,
    answer_edit,
    answer_values,
)
from ui.handlers.columns import show_columns
from ui.handlers.command import command_line
from ui.handlers.data import show_data
from ui.handlers.kept_form import plan_to_keep
from ui.handlers.placing import shown_cards
from ui.handlers.reports import misfit_of
from ui.handlers.rows import Previews
from ui.handlers.start import missing_gpu_message, show_start
from ui.handlers.trace import TraceHandlers
from ui.parts import show_buttons
from ui.render import estimate as panel

NUM_FIXES = 4
STAGE_FIELDS = frozenset(control.field for control in controls("stage"))
"""Fields that are hidden, and not only locked, if the stage does not read them."""


@dataclass(frozen=True)
class Suggestions:
    """Fixes on the page, and the form that they are for."""

    values: Values = field(default_factory=dict)
    """Form as the edit had settled it."""
    sent: Values = field(default_factory=dict)
    """Form as the browser sent it when it asked for them."""
    fixes: tuple[Fix | Cure, ...] = ()


@dataclass(frozen=True)
class Undo:
    """Fix that can be undone."""

    values: Values = field(default_factory=dict)
    """Fields that it changed, with the values before."""
    forms: tuple[Values, ...] = ()
    """Forms that still show it unedited. In any other form there is nothing to undo."""


@dataclass(frozen=True)
class EstimateHandlers:
    """Events of the form and of the estimate, over one home folder."""

    home: Home
    previews: Previews
    trace: TraceHandlers

    def on_edit(
        self,
        form_state: FormState,
        answer: Answer,
        suggestions: Suggestions,
        undo: Undo,
        wanted_trace: str,
        *,
        where: str = "",
        **form: object,
    ) -> Updates:
        """Answer an edit: defaults follow, the profile chooses again, the panels are drawn.

        Fixes on the page are for the form before this edit; `on_suggest` replaces them.
        """
        before = answer.values
        state, answer = answer_edit(
            self.home, self.previews.statistics, form_state, form, suggestions.sent
        )
        updates: Updates = {"form_state": state, "answer": answer}
        updates["kept_plan"] = plan_to_keep(state)
        updates |= shown_cards(answer, where)
        updates |= _show_fields(form, form_state, state)
        updates |= _show_job(answer, state)
        updates |= show_start(answer, self.previews)
        if answer.values != before:  # else its rows were measured, and what was said still holds
            updates["start_message"] = missing_gpu_message(answer, where)
        updates |= show_data(answer.values, answer.report, misfit_of(answer.resolved))
        if _has_other_data(form_state.values, answer.values):
            updates |= show_columns(answer.values, answer.report)
            updates |= {"rows_panel": gr.update(open=False), "row": "", "row_number": 1}
        updates["continues_message"] = _continues_message(self.home, answer.values)
        updates |= {fix_button: gr.update(interactive=False) for fix_button in FIX_BUTTONS}
        updates |= self.trace.on_trace_progress(answer, wanted_trace)
        updates |= _keep_undo(undo, form, answer.values)
        return updates

    def on_suggest(self, answer: Answer, **form: object) -> Updates:
        """Offer what would make the job fit, or faster; or what cures a job that cannot run."""
        if answer.error:
            return _show_cures(answer, form)
        fixes: tuple[Fix, ...] = ()
        if answer.resolved:
            fixes = answer.resolved.fixes()[:NUM_FIXES]
        return {
            "suggestions": Suggestions(answer.values, form, fixes),
            "fixes_title": panel.fixes_title(fixes),
            **show_buttons(FIX_BUTTONS, [fix_label(fix) for fix in fixes]),
        }

    def on_fix(self, place: int, suggestions: Suggestions, **form: object) -> Updates:
        """Put a fix into the form.

        If the form was edited since the fix was offered, offer the fixes of the new form instead.
        """
        if suggestions.values != form or place >= len(suggestions.fixes):
            answer = answer_values(self.home, self.previews.statistics, form)
            return self.on_suggest(answer, **form)
        change = dict(suggestions.fixes[place].change)
        undo = Undo({name: form[name] for name in change}, ({**form, **change},))
        return {**change, "undo": undo, "undo_fix": gr.update(visible=True)}

    def on_undo_fix(self, undo: Undo) -> Updates:
        """Undo the last fix."""
        return {**undo.values, "undo": Undo(), "undo_fix": gr.update(visible=False)}

    def on_reset_all(
        self, form_state: FormState, model: object, method: object, stage: object
    ) -> Updates:
        """Reset every setting to what the model, the method and the stage bring."""
        fields = first_values(model, method, stage)
        settings = {name: value for name, value in fields.items() if name not in IDENTITY}
        return {**settings, "form_state": form_state.without_plan_of(*fields)}

    def on_reset_field(
        self, reset_field: str, form_state: FormState, model: object, method: object, stage: object
    ) -> Updates:
        """Reset one setting to what the model, the method and the stage or the profile bring."""
        fields = first_values(model, method, stage)
        if reset_field not in fields:
            return {}
        state = form_state.without_plan_of(reset_field)
        return {reset_field: fields[reset_field], "form_state": state}

    def on_job_file(self, job_file: str, form_state: FormState) -> Updates:
        """Load the text of a job file into the form, all of it or nothing."""
        try:
            job = JobSpec.from_json(job_file)
        except SpecError as error:
            return {"job_file_message": panel.refusal(error)}
        fields = job.model_dump()
        return {
            **fields,
            "form_state": form_state.filled_with(fields),
            "job_file_message": render.notice("Loaded into the form."),
        }


FIX_BUTTONS = tuple(f"fix_{place}" for place in range(NUM_FIXES))


def _show_cures(answer: Answer, sent: Values) -> Updates:
    """Offer what cures the problems of a job that cannot run, where that is known."""
    problems = answer.error.problems if answer.error else ()
    cures = tuple(each.cure for each in problems if each.cure)[:NUM_FIXES]
    return {
        "suggestions": Suggestions(answer.values, sent, cures),
        "fixes_title": panel.cures_title(len(cures)),
        **show_buttons(FIX_BUTTONS, [cure.title for cure in cures]),
    }


def _has_other_data(before: Values, values: Values) -> bool:
    return any(values[name] != before[name] for name in ("dataset", "stage"))


def _show_fields(sent: Values, before: FormState, state: FormState) -> Updates:
    """Update the controls whose value or mark has changed."""
    updates: Updates = {}
    for name, mark in state.marks.items():
        value = state.values[name]
        if value != sent[name]:
            updates[name] = gr.update(value=value, **_look(name, mark))
        elif mark != before.marks[name]:
            updates[name] = gr.update(**_look(name, mark))
    return updates


def _look(name: str, mark: FieldMark) -> dict[str, Any]:
    """Return a mark as properties of its control. A problem takes the place of the help."""
    classes = []
    if mark.problem:
        classes.append("wrong")
    if mark.is_changed:
        classes.append("changed")
    usable = "visible" if name in STAGE_FIELDS else "interactive"
    return {"info": mark.problem or mark.help, "elem_classes": classes, usable: mark.is_used}


def _show_job(answer: Answer, state: FormState) -> Updates:
    """Draw the panels that need nothing but the answer."""
    has_stage_settings = any(state.marks[name].is_used for name in STAGE_FIELDS)
    return {
        "estimate": _estimate(answer),
        "speed": _speed(answer),
        "stage_settings": gr.update(visible=has_stage_settings),
        "plan": _plan(answer, state.set_by_user),
        "effective_batch": _effective_batch(answer),
        "reset_field": _reset_menu(state),
        "command": command_line(answer.values),
        "job_file": _job_file(answer.values),
    }


def _estimate(answer: Answer) -> str:
    try:
        resolved = answer.require()
    except SpecError as error:
        return panel.refusal(error, LABELS)
    if answer.estimate is None:
        return panel.unknown_architecture(resolved.model.title)
    machine, job = this_machine(), resolved.job
    is_here = job.gpu == "local"
    cards = cards_together(job.device, job.num_devices, machine) if is_here else ()
    ram_bytes = machine.ram_bytes if is_here else 0
    sentences = sentences_of_several_devices(resolved.sharing(), answer.estimate, ram_bytes)
    return panel.estimate_panel(answer.estimate, cards, job.num_devices, sentences)


def _speed(answer: Answer) -> str:
    if answer.speed is None:
        return ""
    return render.notice(f"{speed_sentence(answer.speed)}, {answer.speed.certainty}", "plain")


def _plan(answer: Answer, set_by_user: frozenset[str]) -> str:
    return panel.choices(answer.resolved.plan, set_by_user) if answer.resolved else ""


def _reset_menu(state: FormState) -> object:
    """List the settings that can be reset; hidden if there are none."""
    values = state.values
    usual = first_values(values["model"], values["method"], values["stage"])
    choices = []
    for name, label in LABELS.items():
        mark = state.marks[name]
        if not (mark.is_changed and mark.is_used):
            continue
        instead = f"default {usual[name]}"
        if name in state.set_by_user:
            instead = "or let the profile choose"
        choices.append((f"{label}: {values[name]}, {instead}", name))
    return gr.update(visible=bool(choices), choices=choices, value=None)


def _effective_batch(answer: Answer) -> str:
    try:
        job = JobSpec.parse({name: answer.values[name] for name in BATCH_FIELDS})
    except SpecError:
        return ""
    num_devices = answer.resolved.job.num_devices if answer.resolved else 1
    said = f"Effective batch size: {num_devices * job.effective_batch_size:,} rows per "
    said += "optimizer step"
    if num_devices > 1:
        said += f", {job.effective_batch_size:,} on each of {num_devices} devices"
    return render.notice(said, "plain")


def _job_file(values: Values) -> str:
    """Return the text of a job file, "" if the form holds no valid job."""
    try:
        return JobSpec.parse(values).to_json()
    except SpecError:
        return ""


def _continues_message(home: Home, values: Values) -> str:
    """Say which run the job continues from, if it does."""
    for name in ("adapter", "model"):
        folder = Path(str(values[name] or "")).parent
        if folder.parent == home.runs:
            said = f"Continues from the {name} of run {folder.name}."
            if values["dataset"] == "demo":
                said += " The data is the demo's until you choose your own."
            return render.notice(said, "plain")
    return ""


def _keep_undo(undo: Undo, sent: Values, settled: Values) -> Updates:
    """Keep the undo button as long as the form shows the fix unedited."""
    if not undo.values:
        return {}
    if sent not in undo.forms:
        return {"undo": Undo(), "undo_fix": gr.update(visible=False)}
    return {"undo": replace(undo, forms=(sent, settled))}
