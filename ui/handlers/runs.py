"""Run events: start or queue, watch, stop, resume, compare, delete. Never trains, never waits."""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import gradio as gr

from core import runs
from core.device import this_machine
from core.job import RunNotFound, SpecError, TailorError
from core.resolve import resolve
from core.runs import Home, Run, edits, launch, listing, queue
from core.runs.engines import Placement
from core.runs.past_runs import forecast, past_runs
from core.runs.results.failure_advice import stall_warning
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import FormState, Values
from ui.handlers.checks import CheckHandlers
from ui.handlers.comparisons import show_comparisons, version_of
from ui.handlers.data import data_choices
from ui.handlers.export_activities import ExportActivities
from ui.handlers.guard import guarded
from ui.handlers.placing import NOTHING_ASKED, PlacingHandlers, placement_of
from ui.handlers.results import show_outcome
from ui.handlers.resuming import show_resume
from ui.handlers.rows import Previews
from ui.handlers.run_panel import retries, show_run
from ui.handlers.start import require_startable
from ui.render import comparison, history, plots
from ui.render import run as panel

MAX_LISTED, MAX_COMPARED = 60, 7
NO_FIGURES = "{}"


@dataclass(frozen=True)
class RunsView:
    """Selection on the Runs tab."""

    run_id: str = ""
    compared: str = ""
    """Ids of the runs in the comparison, with spaces."""
    run_search: str = ""
    about_run: str = ""
    """Run that the boxes for name, tags and notes belong to."""
    comparison_id: str = ""
    """Comparison that is shown; "" for the newest."""

    @classmethod
    def of(cls, **boxes: str | None) -> "RunsView":
        """Return what the boxes of the page say; empty ones may hold None."""
        return cls(**{name: text or "" for name, text in boxes.items()})

    @property
    def compared_ids(self) -> tuple[str, ...]:
        """Return each compared run once, as many as a plot can show."""
        return tuple(dict.fromkeys(self.compared.split()))[:MAX_COMPARED]


@dataclass(frozen=True)
class RunHandlers:
    """Events of the runs, over one home folder."""

    home: Home
    previews: Previews
    checks: CheckHandlers
    export_activities: ExportActivities
    placing: PlacingHandlers

    def on_load(self) -> Updates:
        """Fill a new page. If a run is active, select it and show it first."""
        chosen = _newest(runs.listing.list_runs(self.home))
        updates = self._choose(RunsView(), chosen)
        updates["dataset"] = gr.update(choices=data_choices(self.home))
        if chosen and chosen.is_active:
            updates["tabs"] = gr.update(selected="runs")
        return updates

    def on_start(
        self,
        *,
        where: str = "",
        place: Mapping[str, object] = NOTHING_ASKED,
        **form: object,
    ) -> Updates:
        """Create a run of the form's job, start or queue it, or send it to a cluster; show it."""
        try:
            run = self._start(form, placement_of(where, place))
        except SpecError as error:
            return {"start_message": render.notice(f"Not started. {in_words(error)}.", "bad")}
        except OSError as error:
            said = f"Not started. {error.strerror}: {error.filename}"
            return {"start_message": render.notice(said, "bad")}
        said = f"Started {run.id}."
        if run.submission:
            said = f"Sent {run.id}: {run.submission.sentence}."
        elif run.state == "queued":
            said = f"Added {run.id} to the queue."
        updates = self._choose(RunsView(), run)
        updates["tabs"] = gr.update(selected="runs")
        updates["start_message"] = render.notice(said)
        return updates

    def _start(self, form: dict[str, object], placement: Placement) -> Run:
        """Start a job, queue it or send it to a cluster. Raises SpecError, OSError."""
        resolved = resolve(form, None, self.previews.statistics, partial(past_runs, self.home))
        hashes = require_startable(resolved, self.previews)
        placement.require_devices(form.get("num_devices", 1))
        queue.require_seen(self.home, placement)
        run = runs.create(self.home, resolved, forecast(self.home, resolved), hashes)
        return queue.submit(self.home, run, placement)

    def on_view(self, **view: str | None) -> Updates:
        """Show the chosen run, the comparison, and the runs that the search finds."""
        return {**self._show(RunsView.of(**view)), "run_message": ""}

    def on_tick(self, fingerprint: str, **view: str | None) -> Updates:
        """Signal that something on disk has changed since it was shown."""
        # without a fingerprint the page is still loading, and will show everything
        if not fingerprint or self._fingerprint(RunsView.of(**view)) == fingerprint:
            return {}
        return {"changed": str(time.monotonic_ns())}

    def on_changed(self, fingerprint: str, **view: str | None) -> Updates:
        """Show what has changed, unless another event has shown it by now.

        Leaves the choice alone: another run may have been started or chosen since.
        """
        looked_at = RunsView.of(**view)
        if not looked_at.run_id and (newest := _newest(runs.listing.list_runs(self.home))):
            return self._choose(looked_at, newest)
        if self._fingerprint(looked_at) == fingerprint:
            return {}
        return self._show(looked_at)

    def on_stop(self, **view: str | None) -> Updates:
        """Ask the shown run to save a checkpoint and stop. A waiting one leaves the queue."""
        return self._act(RunsView.of(**view), launch.request_stop)

    def on_resume(self, **view: str | None) -> Updates:
        """Continue the shown run from its newest checkpoint, or add it to the queue."""
        return self._act(RunsView.of(**view), lambda run: queue.submit(self.home, run))

    def on_move(self, direction: Literal["up", "down"], **view: str | None) -> Updates:
        """Move the shown run within the queue."""
        return self._act(RunsView.of(**view), lambda run: queue.move(self.home, run.id, direction))

    def on_save_about(self, title: str, tags: str, notes: str, **view: str | None) -> Updates:
        """Save the name, tags and notes of the run that the boxes belong to."""
        looked_at = RunsView.of(**view)

        def save(_shown: Run) -> None:
            words = tags.split(",")
            edits.annotate(self.home, looked_at.about_run, title=title, tags=words, notes=notes)

        return self._act(looked_at, save, done="Saved.", message="about_message")

    def on_delete(self, **view: str | None) -> Updates:
        """Move the shown run to the trash and show another one."""
        looked_at = RunsView.of(**view)
        updates = self._act(looked_at, lambda run: edits.delete(self.home, run.id))
        if self._find(looked_at.run_id):
            return updates
        return self._choose(looked_at, _newest(runs.listing.list_runs(self.home)))

    def on_delete_unreadable(self, unreadable_id: str, **view: str | None) -> Updates:
        """Move a run that cannot be read to the trash."""
        said = ""
        try:
            edits.delete(self.home, unreadable_id)
        except TailorError as error:
            said = render.notice(in_words(error), "bad")
        return {**self._show(RunsView.of(**view)), "unreadable_id": "", "run_message": said}

    def on_restore(self, **view: str | None) -> Updates:
        """Restore the run that was deleted last."""
        trash = self.home.trash
        deleted = sorted(edits.deleted(self.home), key=lambda name: (trash / name).stat().st_ctime)
        run = None
        try:
            if deleted:
                run = edits.restore(self.home, deleted[-1])
        except (RunNotFound, SpecError) as error:
            return {"run_message": render.notice(str(error), "bad")}
        return self._choose(RunsView.of(**view), run)

    def on_empty_trash(self, **view: str | None) -> Updates:
        """Remove deleted runs from the disk."""
        edits.empty_trash(self.home)
        return self._show(RunsView.of(**view))

    def on_active_run(self) -> Updates:
        """Show the running run, whose button in the top line was pressed."""
        return {**self.on_load(), "tabs": gr.update(selected="runs")}

    def on_duplicate(self, run_id: str, form_state: FormState) -> Updates:
        """Fill the form with the job of the shown run."""
        run = self._find(run_id)
        return _fill(form_state, run.fields_again()) if run else _gone(run_id)

    def on_retry(self, place: int, run_id: str, form_state: FormState) -> Updates:
        """Fill the form with the job of a failed run, changed as one piece of advice says."""
        run = self._find(run_id)
        changes = retries(run)
        if run is None:
            return _gone(run_id)
        if place >= len(changes):
            return {}
        change = changes[place].change
        return _fill(form_state, {**run.fields_again(), **change}, set_by_user=change.keys())

    def on_next_stage(self, run_id: str, form_state: FormState) -> Updates:
        """Fill the form with a job that continues from the result of the shown run."""
        run = self._find(run_id)
        if run is None:
            return _gone(run_id)
        if run.state != "finished":
            return {}
        return _fill(form_state, run.fields_of_next_stage("dpo"))

    def _act(
        self,
        view: RunsView,
        action: Callable[[Run], object],
        *,
        done: str = "",
        message: str = "run_message",
    ) -> Updates:
        """Do something with the shown run. Say in the component `message` how it went."""
        said = render.notice(done)
        run = self._find(view.run_id)
        if run is None:
            said = _removed(view.run_id)
        else:
            try:
                action(run)
            except SpecError as error:
                said = render.notice(in_words(error), "bad")
            except RunNotFound:
                said = _removed(view.run_id)
        return {**self._show(view), message: said}

    def _find(self, run_id: str) -> Run | None:
        try:
            return runs.read(self.home, run_id) if run_id else None
        except (RunNotFound, SpecError):
            return None

    def _choose(self, view: RunsView, run: Run | None) -> Updates:
        """Show another run from now on."""
        chosen = replace(view, run_id=run.id if run else "")
        return {**self._show(chosen), "run_id": chosen.run_id, "run_message": ""}

    def _show(self, view: RunsView) -> Updates:
        """Draw the Runs tab and the top line.

        The fingerprint is taken first, so that what changes during the drawing is drawn at the
        next tick.
        """
        fingerprint = self._fingerprint(view)
        listed = runs.listing.list_runs(self.home)
        run = self._find(view.run_id)
        is_new = view.about_run != view.run_id
        return {
            "fingerprint": fingerprint,
            **_show_top_line(listed),
            **self._show_list(view, listed),
            **self._show_plots(view, run),
            **show_comparisons(self.home, view.comparison_id),
            **_show_about(view, run),
            **show_run(run),
            **show_resume(run, self.placing, is_new=is_new),
            **show_outcome(run, self.checks, self.export_activities, is_new=is_new),
            **({"run_header": panel.removed_run()} if view.run_id and not run else {}),
        }

    def _show_list(self, view: RunsView, listed: tuple[Run, ...]) -> Updates:
        found = listing.search(listed, view.run_search)
        shown, chosen = found[:MAX_LISTED], (view.run_id, view.compared_ids)
        has_deleted = bool(edits.deleted(self.home))
        return {
            "run_list": guarded(partial(history.run_list, shown, len(found), *chosen)),
            "history_facts": guarded(partial(history.facts, listed)),
            "unreadable": history.unreadable_runs(listing.unreadable(self.home)),
            "restore": gr.update(visible=has_deleted),
            "empty_trash": gr.update(visible=has_deleted),
        }

    def _show_plots(self, view: RunsView, run: Run | None) -> Updates:
        found = [self._find(run_id) for run_id in view.compared_ids]
        compared = [each for each in found if each is not None]
        shown = compared if len(compared) > 1 else ()
        return {
            "figures": guarded(partial(plots.figures, run, shown), NO_FIGURES),
            "comparison": gr.update(visible=bool(shown)),
            "differences": guarded(partial(history.differences, compared)),
            "report": guarded(partial(comparison.report_on, shown)),
        }

    def _fingerprint(self, view: RunsView) -> str:
        """Return a short text that changes when there is something new to show."""
        run = self._find(view.run_id)
        parts = [repr(replace(view, about_run="")), listing.list_fingerprint(self.home)]
        parts += [version_of(self.home), *self.placing.found]
        if run:
            parts += [run.state, run.fingerprint(), stall_warning(run) or ""]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _gone(run_id: str) -> Updates:
    """Say that a run was deleted while it was shown."""
    return {"run_message": _removed(run_id)}


def _removed(run_id: str) -> str:
    return render.notice(panel.RUN_REMOVED, "bad") if run_id else ""


def _fill(form_state: FormState, values: Values, set_by_user: Collection[str] = ()) -> Updates:
    """Fill the form as a whole and show it."""
    state = form_state.filled_with(values, set_by_user)
    return {**values, "form_state": state, "tabs": gr.update(selected="train")}


def _show_top_line(listed: tuple[Run, ...]) -> Updates:
    running = [run for run in listed if run.is_active and run.state != "queued"]
    updates: Updates = {
        "top_line": render.top_line(this_machine().summary()),
        "active_run": gr.update(visible=False),
        "start": gr.update(value="Start training"),
    }
    if running:
        updates["active_run"] = gr.update(visible=True, value=panel.active_label(running[0]))
    if any(run.submission is None for run in running):
        updates["start"] = gr.update(value="Add to queue")
    return updates


def _show_about(view: RunsView, run: Run | None) -> Updates:
    """Fill the boxes for name, tags and notes, but only when another run is shown."""
    if view.about_run == view.run_id:
        return {}
    title = tags = notes = ""
    if run:
        title, tags, notes = run.about.title, ", ".join(run.about.tags), run.about.notes
    return {
        "title": title,
        "tags": tags,
        "notes": notes,
        "about_run": view.run_id,
        "about_message": "",
    }


def _newest(listed: tuple[Run, ...]) -> Run | None:
    """Return the newest run that is running, else the newest in the queue, else the newest."""
    active = [run for run in listed if run.is_active]
    running = [run for run in active if run.state != "queued"]
    for candidates in (running, active, listed):
        if candidates:
            return candidates[0]
    return None
