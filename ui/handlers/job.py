"""What happens when the form changes: the estimate follows, fixes are offered and taken back. Starts nothing."""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr

from core.advise import PLANNED_FIELDS
from core.device import DeviceReading, find_preset, this_machine
from core.job import JobSpec, SpecError
from core.memory import refine
from core.models import gpus
from core.resolve import ResolvedJob, default_fields, resolve
from core.runs import Home
from core.runs.past_runs import past_runs, speeds
from core.speed import calibrated
from core.training.contract.methods import METHODS, Method
from core.training.contract.stages import STAGES, Stage
from core.wording import fix_label, speed_sentence
from ui import render
from ui.form import FIRST_SHOWN, LABELS, controls, first_values, help_of
from ui.handlers.columns import shown_columns
from ui.handlers.data import report_of, shown_data
from ui.handlers.exact import Checks, shown_check
from ui.handlers.intake import shown_intake
from ui.handlers.preview import Previews
from ui.handlers.shown import Shown
from ui.handlers.unfolded import UnfoldedHandlers
from ui.render import estimate as panel

NOTHING: Mapping[str, Any] = MappingProxyType({})
SHOWN_FIXES = 4


class JobHandlers(UnfoldedHandlers):
    """The events of the form and of the estimate, over one home folder."""

    home: Home
    checks: Checks
    previews: Previews

    def on_edit(
        self,
        marks: Mapping[str, Any],
        fixes: Mapping[str, Any] = NOTHING,
        before_fix: Mapping[str, Any] = NOTHING,
        **form: object,
    ) -> Shown:
        """A control changed: defaults follow model, method and stage, the profile chooses anew, the estimate follows.

        The fixes on the page belong to the form as it was; `on_suggest` puts others in their place.
        """
        fields = form | _follow_defaults(marks, form)
        by_hand = _set_by_hand(marks, form, fixes.get("settled", NOTHING))
        report = report_of(fields)
        fields["dataset_sha256"] = report.sha256 if report and fields["dataset"] != "demo" else ""
        rows = self.previews.statistics(fields)
        try:
            resolved = resolve(fields, by_hand, rows)
            fields |= {"model": resolved.job.model, **resolved.plan.change}
            shown, problems = self._estimate(resolved), {}
        except SpecError as error:
            resolved, shown = None, panel.refusal(error, LABELS)
            problems = {each.field: f"{each.problem}; {each.fix}" for each in error.problems}
        wanted = _marks(fields, problems, by_hand)
        before = marks.get("fields", {})
        updates: Shown = {
            name: gr.update(
                **mark.update(name)
                | ({"value": fields[name]} if fields[name] != form[name] else {})
            )
            for name, mark in wanted.items()
            if fields[name] != form[name]
            or before.get(name, Mark(help=help_of(name, FIRST_SHOWN[name]))) != mark
        }
        planned = dict(resolved.plan.change) if resolved else marks.get("planned", {})
        names = ("model", "dataset", "method", "stage", "profile")
        return updates | {
            "estimate": shown,
            "stage_settings": gr.update(visible=any(wanted[name].is_used for name in OF_A_STAGE)),
            "choices": panel.choices(resolved.plan, by_hand) if resolved else "",
            **shown_data(report),
            **shown_intake(fields),
            **shown_columns(
                fields,
                report,
                any(fields[name] != marks.get(name) for name in ("dataset", "stage")),
            ),
            "effective_batch": _effective_batch(fields),
            "put_back": _put_back(fields, wanted),
            **{f"fix_{place}": gr.update(interactive=False) for place in range(SHOWN_FIXES)},
            "command": _command_line(fields),
            "job_file": _job_file(fields),
            **shown_check(self.checks, fields, rows),
            **_undo_after(before_fix, form, fields),
            "goes_on": render.notice(_goes_on(self.home, fields), "plain"),
            "start_message": render.notice(_elsewhere(fields["gpu"], resolved), "warned"),
            "marks": {name: fields[name] for name in names}
            | {
                "form": fields,
                "fields": wanted,
                "planned": planned,
                "by_hand": by_hand if planned else frozenset(),
            }
            | {"overwritten": {name: form[name] for name in planned}},
        }

    def _estimate(self, resolved: ResolvedJob) -> str:
        """The estimate panel, with what past runs taught. Raises SpecError for a job that cannot run on its model."""
        if resolved.model.shape is None:
            return panel.unknown_architecture(resolved.model.title)
        found = refine(resolved.estimate(), past_runs(self.home, resolved))
        return panel.estimate_panel(found, _card(resolved.job))

    def on_suggest(self, marks: Mapping[str, Any] = NOTHING, **form: object) -> Shown:
        """The estimate stands; now what would make the job fit, or faster, and how long it will take.

        They are for the form as the edit left it, which a slow browser may not have put in yet.
        """
        wanted = marks.get("form", form)
        try:
            resolved = resolve(wanted, rows=self.previews.statistics(wanted))
            fixes, speed = resolved.fixes()[:SHOWN_FIXES], resolved.speed()
            speed = calibrated(speed, speeds(self.home, resolved)) if speed else None
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
            "fixes": {
                "form": wanted,
                "settled": form,
                "changes": [dict(fix.change) for fix in fixes],
            },
            "fixes_title": panel.fixes_title(fixes),
            "speed": render.notice(f"{speed_sentence(speed)}, {speed.certainty}", "plain")
            if speed
            else "",
        }

    def on_fix(self, place: int, fixes: Mapping[str, Any], **form: object) -> Shown:
        """A fix was pressed: its change goes into the form, and can be taken back.

        Pressed before the form's newest edit has been answered, it is of another form: the fixes of this one come.
        """
        if fixes.get("form") != form or place >= len(fixes["changes"]):
            return self.on_suggest(NOTHING, **form)
        change = fixes["changes"][place]
        before = {name: form[name] for name in change}
        return {
            **change,
            "before_fix": {"fields": before, "left": [form | change]},
            "undo": gr.update(visible=True),
        }

    def on_undo(self, before_fix: Mapping[str, Any]) -> Shown:
        """The last fix is taken back."""
        return {
            **before_fix.get("fields", NOTHING),
            "before_fix": {},
            "undo": gr.update(visible=False),
        }

    def on_reset(self, marks: Mapping[str, Any], model: str, method: str, stage: str) -> Shown:
        """Every setting goes back to what the model, the method and the stage would have it be."""
        fields = {
            name: value
            for name, value in first_values(model, method, stage).items()
            if name not in IDENTITY
        }
        return fields | {
            "marks": {**marks, "planned": {}, "overwritten": {}, "by_hand": frozenset()}
        }

    def on_put_back(
        self, field: str, marks: Mapping[str, Any], model: str, method: str, stage: str
    ) -> Shown:
        """One setting goes back to what the model, the method and the stage would have it be, or to the profile."""
        forgotten = {
            name: {each: marks[name][each] for each in marks[name] if each != field}
            for name in OF_A_PLAN
        }
        kept = {**marks, **forgotten, "by_hand": frozenset(marks["by_hand"]) - {field}}
        return {field: first_values(model, method, stage)[field], "marks": kept}

    def on_job_file(self, text: str) -> Shown:
        """The form is filled from the text of a job file, whole or not at all."""
        try:
            job = JobSpec.from_json(text)
        except SpecError as error:
            return {"job_file_message": panel.refusal(error)}
        return {
            **job.model_dump(),
            "job_file_message": render.notice("The form is filled from it."),
        }


@dataclass(frozen=True)
class Mark:
    """What stands at one control besides its value."""

    problem: str = ""
    help: str = ""
    is_changed: bool = False
    """True if the value differs from what the model and the method would have it be."""
    is_used: bool = True
    """False for what the method has no use for: an adapter's rank in full fine-tuning."""

    def update(self, field: str) -> dict[str, Any]:
        """The mark as properties of the control: the problem takes the place of the help.

        What the stage has no use for is not shown at all; what the method has no use for cannot be set.
        """
        classes = [
            name
            for name, applies in (("wrong", self.problem), ("changed", self.is_changed))
            if applies
        ]
        use = "visible" if field in OF_A_STAGE else "interactive"
        return {
            "info": self.problem or self.help,
            "elem_classes": classes,
            use: self.is_used,
        }


IDENTITY = ("model", "dataset", "dataset_sha256", "method", "stage", "gpu")
"""Fields that say what the job is; they have no default worth going back to."""
OF_A_PLAN = ("planned", "overwritten")
"""What is remembered of the fields that a profile chose."""
OF_A_STAGE = frozenset(control.field for control in controls("stage"))


def _undo_after(
    before_fix: Mapping[str, Any], form: Mapping[str, object], settled: Mapping[str, object]
) -> Shown:
    """A fix can be taken back while the form is what it left, as the browser sends it or as the edits settled it."""
    if not before_fix:
        return {}
    if form not in before_fix["left"]:
        return {"before_fix": {}, "undo": gr.update(visible=False)}
    return {"before_fix": {**before_fix, "left": [form, settled]}}


def _follow_defaults(marks: Mapping[str, Any], form: Mapping[str, object]) -> dict[str, object]:
    """The fields that stood at a default of the model, method and stage before, and so move to the new one."""
    before, after = (
        first_values(each.get("model"), each.get("method"), each.get("stage"))
        for each in (marks, form)
    )
    return {
        name: after[name]
        for name, value in form.items()
        if name not in IDENTITY and value == before[name] and value != after[name]
    }


def _set_by_hand(
    marks: Mapping[str, Any], form: Mapping[str, object], settled: Mapping[str, object]
) -> frozenset[str]:
    """The fields that a profile would choose, but a person has set since the profile was chosen.

    A quick edit may reach here before the browser has put in what was planned at the one before: what it still holds
    of old is nobody's wish. `settled` is a form that it sent later: once the plan is in it, the browser has it.
    """
    if form["profile"] != marks.get("profile"):
        return frozenset()
    planned, overwritten = marks.get("planned", NOTHING), marks.get("overwritten", NOTHING)
    late = {
        name
        for name in overwritten
        if form[name] == overwritten[name] and settled.get(name) != planned[name]
    }
    changed = {name for name, value in planned.items() if form[name] != value}
    return frozenset(marks.get("by_hand", ())) | (changed - late)


def _marks(
    fields: Mapping[str, object], problems: Mapping[str, str], by_hand: Collection[str]
) -> dict[str, Mark]:
    """What stands at each control."""
    defaults = first_values(fields.get("model"), fields.get("method"), fields.get("stage"))
    planned = PLANNED_FIELDS if fields["profile"] != "custom" else frozenset()
    unused = _unused(METHODS.get(str(fields.get("method"))), STAGES.get(str(fields.get("stage"))))
    changed = {name for name, value in fields.items() if value != defaults[name]} - set(
        IDENTITY
    ) - planned | set(by_hand)
    return {
        name: Mark(
            problems.get(name, ""), help_of(name, value), name in changed, name not in unused
        )
        for name, value in fields.items()
    }


def _put_back(fields: Mapping[str, object], marks: Mapping[str, Mark]) -> dict[str, Any]:
    """The menu of settings that are not what they would be; hidden while there are none."""
    usual = first_values(fields.get("model"), fields.get("method"), fields.get("stage"))
    changed = [name for name in LABELS if marks[name].is_changed and marks[name].is_used]
    planned = PLANNED_FIELDS if fields["profile"] != "custom" else frozenset()
    instead = {
        name: "else of the profile's choice" if name in planned else f"usually {usual[name]}"
        for name in changed
    }
    choices = [(f"{LABELS[name]}: {fields[name]}, {instead[name]}", name) for name in changed]
    return gr.update(visible=bool(changed), choices=choices, value=None)


def _unused(method: Method | None, stage: Stage | None) -> frozenset[str]:
    """The fields that a method or a stage has no use for."""
    if method is None or stage is None:
        return frozenset()
    of_stages = OF_A_STAGE.union(*(each.fields for each in STAGES.values())) - set(stage.fields)
    adapter = {"lora_r", *(control.field for control in controls("adapter"))} - {
        "num_trainable_layers"
    }
    quantised = {name for name in JobSpec.model_fields if name.startswith("bnb_4bit_")}
    of_methods = (
        (adapter, method.trains_adapter),
        (quantised, method.base_bits == 4),
        ({"num_trainable_layers"}, method.trains_last_layers),
    )
    return frozenset(of_stages).union(*(names for names, is_used in of_methods if not is_used))


def _effective_batch(fields: Mapping[str, object]) -> str:
    try:
        rows = int(str(fields["per_device_train_batch_size"])) * int(
            str(fields["gradient_accumulation_steps"])
        )
    except ValueError:
        return ""
    return (
        render.notice(f"Effective batch: {rows:,} rows per optimizer step", "plain")
        if rows > 0
        else ""
    )


def _command_line(fields: Mapping[str, object]) -> str:
    """The same job from a terminal: only what differs from what the command would assume."""
    is_demo = fields.get("model") == "demo" and fields.get("dataset") == "demo"
    assumed = default_fields("demo" if is_demo else "", fields.get("method"), fields.get("stage"))
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


def _goes_on(home: Home, fields: Mapping[str, object]) -> str:
    """What the job begins with, if that is what a run has left, and on which data it goes on."""
    for field in ("adapter", "model"):
        folder = Path(str(fields[field] or "")).parent
        if folder.parent == home.runs:
            data = (
                "the data is the demo's until you choose your own"
                if fields["dataset"] == "demo"
                else ""
            )
            return f"Goes on from the {field} of run {folder.name}{'; ' if data else ''}{data}."
    return ""


def _elsewhere(gpu: object, resolved: ResolvedJob | None) -> str:
    """What a start would mean for a job whose card this machine lacks."""
    wanted, cards = gpus().get(str(gpu)), this_machine().gpus
    known = [find_preset(card.name, card.capacity_bytes) for card in cards]
    if resolved is None or wanted is None or wanted in known:
        return ""
    own = cards[min(resolved.job.device, len(cards) - 1)].short_name if cards else "CPU"
    return (
        f"This machine has no {wanted.name.removeprefix('GeForce ')}: it will train on its {own}."
    )


def _card(job: JobSpec) -> DeviceReading | None:
    """The card in this machine that the job is for; None if it is for another, or there is none."""
    cards = this_machine().gpus if job.gpu == "local" else ()
    return cards[job.device] if job.device < len(cards) else None
