"""What happens on each event: read the form, call core, return {name of a component: what it shows now}.

Names are JobSpec fields for the form and the page's own names for the rest; the page joins them to components. Values
are strings, numbers, figures and updates of these only. A handler never trains and never waits.
"""

import hashlib
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from core import dataset, launch, runs
from core.dataset import DatasetError, DatasetReport, Wish, Written, drop_bad_rows, repair
from core.device import chip
from core.job import JobSpec, Problem, SpecError
from core.methods import METHODS, Method
from core.presets import gpus, recipes
from core.resolve import dataset_path, default_fields, recipe_fields, resolve
from core.runs import Home, Run, RunNotFound
from core.speed import RowStatistics
from ui import render
from ui.form import controls
from ui.words import fix_label, speed_sentence

Shown = dict[str, object]
"""{component name: new value or gr.update}; what is not named stays as it is."""
LISTED_RUNS = 50
SHOWN_FIXES = 4
LARGE_FILE_BYTES = 4 * 2**20
BYTES_PER_TOKEN = 4
"""Of English text under the usual vocabularies; enough for a forecast until the rows are tokenised."""
USUAL_CARDS = ("rtx-3060", "rtx-4060-ti-16gb", "t4", "rtx-4090", "rtx-5090", "l40s", "a100-80gb", "h200")
"""The columns of "What fits where"."""


@dataclass(frozen=True)
class Handlers:
    """The page's events, over one home folder."""

    home: Home

    def on_load(self) -> Shown:
        """A new page: the newest active run is selected, and shown first if there is one."""
        listed = runs.list_runs(self.home)
        chosen = _newest(listed)
        tab = {"tabs": gr.update(selected="runs")} if chosen and chosen.is_active else {}
        return self._show(listed, chosen) | tab

    def on_edit(self, marks: Mapping[str, Any], **form: object) -> Shown:
        """A control changed: values at a default follow the new model or method, and the estimate follows all.

        The fixes on the page belong to the form as it was; `on_suggest` puts others in their place.
        """
        moved = _follow_defaults(marks, form)
        fields = form | moved
        panel, problems = _estimate(fields)
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
            "estimate": panel,
            **_data(fields),
            "effective_batch": _effective_batch(fields),
            **{f"fix_{place}": gr.update(interactive=False) for place in range(SHOWN_FIXES)},
            "command": _command_line(fields),
            "start_message": "",
            "marks": {"model": fields["model"], "method": fields["method"], "fields": wanted},
        }

    def on_suggest(self, **form: object) -> Shown:
        """The estimate stands; now what would make the job fit, or faster, and how long it will take."""
        try:
            resolved = resolve(form)
            rows = _row_statistics(form)
            fixes, speed = resolved.fixes(rows)[:SHOWN_FIXES], resolved.speed(rows)
        except SpecError:
            fixes, speed = (), None
        shown = [*fixes, *[None] * (SHOWN_FIXES - len(fixes))]
        buttons = {
            f"fix_{place}": gr.update(visible=True, interactive=True, value=fix_label(fix)) if fix else gr.update(visible=False)
            for place, fix in enumerate(shown)
        }
        return buttons | {
            "fixes": {"form": form, "changes": [dict(fix.change) for fix in fixes]},
            "fixes_title": render.fixes_title(fixes),
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
            return {"what_fits": render.refusal(error)}
        return {"what_fits": render.what_fits(batches, resolved.job.max_length)}

    def on_upload(self, upload: str | None) -> Shown:
        """A file was dropped: it is kept under its content's name, and becomes the job's data."""
        if not upload:
            return {}
        source = Path(upload)
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip(".-")[:60] or "data"
        target = self.home.uploads / digest / f"{name}.jsonl"
        target.parent.mkdir(exist_ok=True)
        shutil.move(source, target)
        return {"dataset": str(target), "upload": None, "mended": ""}

    def on_drop_rows(self, dataset: str, stage: str) -> Shown:
        """Writes the data again without its bad rows, and takes the new file as the data."""
        return self._mended(dataset, lambda path, target: drop_bad_rows(path, target, Wish(stage=stage)))

    def on_repair(self, dataset: str) -> Shown:
        """Writes the data again with everything repaired that can be, and takes the new file as the data."""
        return self._mended(dataset, repair)

    def _mended(self, dataset: str, mend: Callable[[Path, Path], Written]) -> Shown:
        source = dataset_path(dataset)
        try:
            target = self.home.uploads / secrets.token_hex(6) / source.with_suffix(".jsonl").name
            target.parent.mkdir()
            written = mend(source, target)
        except (DatasetError, OSError) as error:
            return {"mended": render.notice(f"Nothing was changed. {error}", "bad")}
        said = " ".join(written.actions) or "Nothing needed to be changed."
        return {"dataset": str(written.path), "mended": render.notice(f"{said} The old file stays as it is.")}

    def on_reset(self, model: str, method: str) -> Shown:
        """Every setting goes back to what the model and the method would have it be."""
        return {name: value for name, value in default_fields(model, method).items() if name not in IDENTITY}

    def on_recipe(self, recipe: str | None) -> Shown:
        """A recipe was chosen: its settings go into the form, and nothing else changes."""
        return dict(recipe_fields(recipe)) if recipe and recipe in recipes() else {}

    def on_start(self, **form: object) -> Shown:
        """Starts a run of the form's job, and shows it."""
        try:
            resolved = resolve(form)
            for field, path in resolved.datasets.items():
                _require_usable(field, _checked(path, resolved.job.stage))
            run = runs.create(self.home, resolved, resolved.forecast(_row_statistics(form)))
            launch.start(self.home, run)
        except SpecError as error:
            words = "; ".join(map(str, error.problems))
            return {"start_message": render.notice(f"Not started. {words}.", "bad")}
        except OSError as error:
            return {"start_message": render.notice(f"Not started. {error.strerror}: {error.filename}", "bad")}
        shown = self._show(runs.list_runs(self.home), runs.read(self.home, run.id))
        return shown | {"tabs": gr.update(selected="runs"), "start_message": render.notice(f"Started {run.id}.")}

    def on_pick(self, run_id: str | None) -> Shown:
        """Another run was chosen."""
        return self._show(runs.list_runs(self.home), self._find(run_id))

    def on_tick(self, run_id: str | None, seen: str) -> Shown:
        """A second passed: nothing is sent unless something on disk changed.

        The picker keeps its value: this tick may have been under way when another run was started or chosen.
        """
        listed = runs.list_runs(self.home)
        run = self._find(run_id)
        if run is None and listed:
            return self._show(listed, _newest(listed))
        if _seen(listed, run) == seen:
            return {}
        return self._show(listed, run) | {"run_id": gr.update(choices=_choices(listed))}

    def on_stop(self, run_id: str | None) -> Shown:
        """Asks the shown run to save a checkpoint and end."""
        if run := self._find(run_id):
            launch.request_stop(run)
        return self.on_pick(run_id)

    def on_resume(self, run_id: str | None) -> Shown:
        """Continues the shown run from its newest checkpoint."""
        if (run := self._find(run_id)) and not run.is_active:
            try:
                launch.start(self.home, run)
            except SpecError as error:
                gr.Warning("; ".join(map(str, error.problems)))
        return self.on_pick(run_id)

    def on_live(self) -> Shown:
        """The running run in the top line was pressed."""
        return self.on_load() | {"tabs": gr.update(selected="runs")}

    def on_reuse(self, run_id: str | None) -> Shown:
        """Fills the form with the shown run's job."""
        if not (run := self._find(run_id)):
            return {}
        return {**runs.fields_again(run), "tabs": gr.update(selected="train")}

    def _find(self, run_id: str | None) -> Run | None:
        try:
            return runs.read(self.home, str(run_id)) if run_id else None
        except (RunNotFound, SpecError):
            return None

    def _show(self, listed: tuple[Run, ...], run: Run | None) -> Shown:
        """Everything about the runs: the top line, the picker, and the chosen run."""
        active = next((each for each in listed if each.is_active), None)
        ended_early = run is not None and run.state in ("stopped", "failed", "interrupted")
        return {
            "top": render.top_line(chip()),
            "live": gr.update(value=render.run_label(active) if active else "", visible=active is not None),
            "run_id": gr.update(choices=_choices(listed), value=run.id if run else None),
            "run_header": render.run_header(run),
            "stop": gr.update(
                visible=run is not None and run.is_active, interactive=run is None or run.state != "stopping"
            ),
            "resume": gr.update(visible=ended_early),
            "reuse": gr.update(visible=run is not None),
            "tiles": render.tiles(run),
            "figures": render.figures(run),
            "memory_table": render.memory_table(run),
            "answers": render.answers(run),
            "what_next": render.what_next(run),
            "log": runs.log_tail(run.folder) if run else "",
            "seen": _seen(listed, run),
        }


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
        return render.estimate_panel(resolve(fields).estimate()), {}
    except SpecError as error:
        return render.refusal(error), {each.field: f"{each.problem}; {each.fix}" for each in error.problems}


def _data(fields: Mapping[str, object]) -> Shown:
    """One line about the data, what is behind it, and the buttons that would mend it."""
    path = dataset_path(str(fields.get("dataset") or ""))
    report = _checked(path, str(fields.get("stage") or "sft")) if path.is_file() else None
    can_drop = report is not None and report.num_problems > 0 and report.valid_rows > 0
    return {
        "data_line": render.data_report(report) if report else "",
        "drop_rows": gr.update(visible=can_drop),
        "repair": gr.update(visible=report is not None and bool(report.repairs)),
    }


def _row_statistics(fields: Mapping[str, object]) -> RowStatistics | None:
    """How many rows the data has, and about how long they are: in English text a token is some four bytes."""
    path = dataset_path(str(fields.get("dataset") or ""))
    if not path.is_file() or not (rows := _checked(path, str(fields.get("stage") or "sft")).rows):
        return None
    return RowStatistics(rows, mean_tokens=max(1.0, path.stat().st_size / rows / BYTES_PER_TOKEN))


def _checked(path: Path, stage: str) -> DatasetReport:
    """The report on a file; read again only when the file has changed."""
    stat = path.stat()
    return _report(path, stage, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=32)
def _report(path: Path, stage: str, _modified: int, size: int) -> DatasetReport:
    """A large file, which could hold the page up, is checked in a child process."""
    return dataset.check_in_child(path, stage) if size > LARGE_FILE_BYTES else dataset.check(path, stage)


def _require_usable(field: str, report: DatasetReport) -> None:
    if not report.is_usable:
        first = report.problems[0]
        raise SpecError(
            (Problem(field, f"{report.num_problems} lines cannot be used, the first is {first}", "correct them"),)
        )


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


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _newest(listed: tuple[Run, ...]) -> Run | None:
    """The run to show when none was chosen: the newest that is active, else the newest."""
    return next((run for run in listed if run.is_active), listed[0] if listed else None)


def _choices(listed: tuple[Run, ...]) -> list[tuple[str, str]]:
    return [(render.run_label(run), run.id) for run in listed[:LISTED_RUNS]]


def _seen(listed: tuple[Run, ...], run: Run | None) -> str:
    """A short text that changes when there is something new to show."""
    parts = [render.run_label(each) for each in listed[:LISTED_RUNS]]
    parts += [run.id, run.state, runs.fingerprint(run.folder)] if run else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
