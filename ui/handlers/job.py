"""What happens when the form changes: the estimate follows, fixes are offered and taken back. Starts nothing."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.device import DeviceReading, this_machine
from core.job import JobSpec, SpecError
from core.methods import METHODS, Method
from core.presets import gpus, recipes
from core.resolve import default_fields, recipe_fields, resolve
from core.runs import Home
from ui import render
from ui.form import controls
from ui.handlers.data import shown_data
from ui.handlers.exact import Checks, shown_check
from ui.handlers.preview import measured_rows
from ui.handlers.shown import Shown
from ui.render import estimate as panel
from ui.words import fix_label, speed_sentence

SHOWN_FIXES = 4
USUAL_CARDS = ("rtx-3060", "rtx-4060-ti-16gb", "t4", "rtx-4090", "rtx-5090", "l40s", "a100-80gb", "h200")
"""The columns of "What fits where"."""


class JobHandlers:
    """The events of the form and of the estimate, over one home folder."""

    home: Home
    checks: Checks

    def on_edit(self, marks: Mapping[str, Any], **form: object) -> Shown:
        """A control changed: values at a default follow the new model or method, and the estimate follows all.

        The fixes on the page belong to the form as it was; `on_suggest` puts others in their place.
        """
        moved = _follow_defaults(marks, form)
        fields = form | moved
        shown, problems = _estimate(fields)
        defaults = default_fields(fields.get("model"), fields.get("method"))
        unused = _unused(METHODS.get(str(fields.get("method"))))
        wanted = {
            name: Mark(problems.get(name, ""), name not in IDENTITY and value != defaults[name], name not in unused)
            for name, value in fields.items()
        }
        before = marks.get("fields", {})
        updates: Shown = {
            name: gr.update(**mark.update(name) | ({"value": moved[name]} if name in moved else {}))
            for name, mark in wanted.items()
            if name in moved or before.get(name, Mark()) != mark
        }
        return updates | {
            "estimate": shown,
            **shown_data(fields),
            "effective_batch": _effective_batch(fields),
            **{f"fix_{place}": gr.update(interactive=False) for place in range(SHOWN_FIXES)},
            "command": _command_line(fields),
            "job_file": _job_file(fields),
            **shown_check(self.checks, fields),
            "start_message": "",
            "marks": {"model": fields["model"], "method": fields["method"], "fields": wanted},
        }

    def on_suggest(self, **form: object) -> Shown:
        """The estimate stands; now what would make the job fit, or faster, and how long it will take."""
        try:
            resolved = resolve(form)
            rows = measured_rows(form)
            fixes, speed = resolved.fixes(rows)[:SHOWN_FIXES], resolved.speed(rows)
        except SpecError:
            fixes, speed = (), None
        shown = [*fixes, *[None] * (SHOWN_FIXES - len(fixes))]
        buttons = {
            f"fix_{place}": gr.update(visible=True, interactive=True, value=fix_label(fix))
            if fix
            else gr.update(visible=False)
            for place, fix in enumerate(shown)
        }
        return buttons | {
            "fixes": {"form": form, "changes": [dict(fix.change) for fix in fixes]},
            "fixes_title": panel.fixes_title(fixes),
            "speed": render.notice(f"{speed_sentence(speed)}, ± 25 %", "plain") if speed else "",
        }

    def on_fix(self, place: int, fixes: Mapping[str, Any], **form: object) -> Shown:
        """A fix was pressed: its change goes into the form, and can be taken back.

        Pressed before the form's newest edit has been answered, it is of another form, and changes nothing.
        """
        if fixes.get("form") != form or place >= len(fixes["changes"]):
            return {}
        change = fixes["changes"][place]
        before = {name: form[name] for name in change}
        return {**change, "before_fix": before, "undo": gr.update(visible=True)}

    def on_undo(self, before_fix: dict[str, object]) -> Shown:
        """The last fix is taken back."""
        return {**before_fix, "before_fix": {}, "undo": gr.update(visible=False)}

    def on_what_fits(self, model: str, max_length: object) -> Shown:
        """The table was opened: the largest batch of the form's model and length, by method, on the usual cards."""
        try:
            resolved = resolve({"model": model, "max_length": max_length})
            batches = resolved.largest_batches([gpus()[card] for card in USUAL_CARDS])
        except SpecError as error:
            return {"what_fits": panel.refusal(error)}
        return {"what_fits": panel.what_fits(batches, resolved.job.max_length)}

    def on_reset(self, model: str, method: str) -> Shown:
        """Every setting goes back to what the model and the method would have it be."""
        return {name: value for name, value in default_fields(model, method).items() if name not in IDENTITY}

    def on_job_file(self, text: str) -> Shown:
        """The form is filled from the text of a job file, whole or not at all."""
        try:
            job = JobSpec.from_json(text)
        except SpecError as error:
            return {"job_file_message": panel.refusal(error)}
        return {**job.model_dump(), "job_file_message": render.notice("The form is filled from it.")}

    def on_recipe(self, recipe: str | None) -> Shown:
        """A recipe was chosen: its settings go into the form, and nothing else changes."""
        return dict(recipe_fields(recipe)) if recipe and recipe in recipes() else {}


@dataclass(frozen=True)
class Mark:
    """What stands at one control besides its value."""

    problem: str = ""
    is_changed: bool = False
    """True if the value differs from what the model and the method would have it be."""
    is_used: bool = True
    """False for what the method has no use for: an adapter's rank in full fine-tuning."""

    def update(self, field: str) -> dict[str, Any]:
        """The mark as properties of the control: the problem takes the place of the help."""
        classes = [name for name, applies in (("wrong", self.problem), ("changed", self.is_changed)) if applies]
        help_text = JobSpec.model_fields[field].description
        return {"info": self.problem or help_text, "elem_classes": classes, "interactive": self.is_used}


IDENTITY = ("model", "dataset", "method", "gpu")
"""Fields that say what the job is; they have no default worth going back to."""


def _follow_defaults(marks: Mapping[str, Any], form: Mapping[str, object]) -> dict[str, object]:
    """The fields that stood at a default of the model and method before, and so move to the new ones' default."""
    before = default_fields(marks.get("model"), marks.get("method"))
    after = default_fields(form.get("model"), form.get("method"))
    return {
        name: after[name]
        for name, value in form.items()
        if name not in IDENTITY and value == before[name] and value != after[name]
    }


def _unused(method: Method | None) -> frozenset[str]:
    """The fields that a method has no use for."""
    adapter = {"lora_r", *(control.field for control in controls("adapter"))}
    quantised = {name for name in JobSpec.model_fields if name.startswith("bnb_4bit_")}
    if method is None:
        return frozenset()
    return frozenset((set() if method.trains_adapter else adapter) | (set() if method.base_bits == 4 else quantised))


def _estimate(fields: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """(the estimate panel, {field: what is wrong and what to do})."""
    try:
        resolved = resolve(fields)
        return panel.estimate_panel(resolved.estimate(), _card(resolved.job)), {}
    except SpecError as error:
        return panel.refusal(error), {each.field: f"{each.problem}; {each.fix}" for each in error.problems}


def _effective_batch(fields: Mapping[str, object]) -> str:
    try:
        rows = int(str(fields["per_device_train_batch_size"])) * int(str(fields["gradient_accumulation_steps"]))
    except ValueError:
        return ""
    return render.notice(f"Effective batch: {rows:,} rows per optimizer step", "plain")


def _command_line(fields: Mapping[str, object]) -> str:
    """The same job from a terminal: only what differs from what the command would assume."""
    is_demo = fields.get("model") == "demo" and fields.get("dataset") == "demo"
    assumed = default_fields("demo" if is_demo else "", fields.get("method"))
    flags = [
        f"--{name.replace('_', '-')} {shlex.quote(_flag(value))}"
        for name, value in fields.items()
        if value != assumed[name] and value is not None
    ]
    return " ".join(["python app.py train", *(["--demo"] if is_demo else []), *flags])


def _job_file(fields: Mapping[str, object]) -> str:
    """The job as the text of a job file; empty while it is none."""
    try:
        return JobSpec.parse(fields).to_json()
    except SpecError:
        return ""


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _card(job: JobSpec) -> DeviceReading | None:
    """The card in this machine that the job is for; None if it is for another, or there is none."""
    cards = this_machine().gpus if job.gpu == "local" else ()
    return cards[job.device] if job.device < len(cards) else None
