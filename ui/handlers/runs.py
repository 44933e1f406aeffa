"""What happens to the runs: started, watched, stopped, resumed. Never trains and never waits."""

import hashlib

import gradio as gr

from core import launch, runs
from core.device import chip
from core.job import SpecError
from core.resolve import resolve
from core.runs import Home, Run, RunNotFound
from ui import render
from ui.handlers.data import checked, require_usable
from ui.handlers.preview import measured_rows
from ui.handlers.shown import Shown
from ui.render import plots
from ui.render import run as panel

LISTED_RUNS = 50


class RunHandlers:
    """The events of the runs, over one home folder."""

    home: Home

    def on_load(self) -> Shown:
        """A new page: the newest active run is selected, and shown first if there is one."""
        listed = runs.list_runs(self.home)
        chosen = _newest(listed)
        tab = {"tabs": gr.update(selected="runs")} if chosen and chosen.is_active else {}
        return self._show(listed, chosen) | tab

    def on_start(self, **form: object) -> Shown:
        """Starts a run of the form's job, and shows it."""
        try:
            resolved = resolve(form)
            for field, path in resolved.datasets.items():
                require_usable(field, checked(path, resolved.job.stage))
            run = runs.create(self.home, resolved, resolved.forecast(measured_rows(form)))
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
            "live": gr.update(value=panel.run_label(active) if active else "", visible=active is not None),
            "run_id": gr.update(choices=_choices(listed), value=run.id if run else None),
            "run_header": panel.run_header(run),
            "stop": gr.update(
                visible=run is not None and run.is_active, interactive=run is None or run.state != "stopping"
            ),
            "resume": gr.update(visible=ended_early),
            "reuse": gr.update(visible=run is not None),
            "tiles": panel.tiles(run),
            "figures": plots.figures(run),
            "memory_table": panel.memory_table(run),
            "answers": panel.answers(run),
            "what_next": panel.what_next(run),
            "log": runs.log_tail(run.folder) if run else "",
            "seen": _seen(listed, run),
        }


def _newest(listed: tuple[Run, ...]) -> Run | None:
    """The run to show when none was chosen: the newest that is active, else the newest."""
    return next((run for run in listed if run.is_active), listed[0] if listed else None)


def _choices(listed: tuple[Run, ...]) -> list[tuple[str, str]]:
    return [(panel.run_label(run), run.id) for run in listed[:LISTED_RUNS]]


def _seen(listed: tuple[Run, ...], run: Run | None) -> str:
    """A short text that changes when there is something new to show."""
    parts = [panel.run_label(each) for each in listed[:LISTED_RUNS]]
    parts += [run.id, run.state, runs.fingerprint(run.folder)] if run else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
