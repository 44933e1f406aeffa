"""Events of a run that has ended: publish a checkpoint, train for more epochs. Never waits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape

import gradio as gr

from core import runs
from core.job import SpecError, TailorError
from core.runs import Home, Run, queue, results
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.checks import CheckHandlers
from ui.handlers.export_activities import ExportActivities
from ui.handlers.exports import show_panel
from ui.handlers.guard import UNREADABLE, guarded_updates
from ui.render import run as panel

HIDDEN = ("checkpoints", "more_epochs", "continue_run")


def show_outcome(
    run: Run | None, checks: CheckHandlers, export_activities: ExportActivities, *, is_new: bool
) -> Updates:
    """Draw the checkpoints, the exports and the suites. A damaged file costs its own panel."""
    hidden = gr.update(visible=False)
    exports = partial(show_panel, run, export_activities, is_new=is_new)
    suites = partial(checks.show_panel, run, is_new=is_new)
    return {
        **guarded_updates(partial(show_results, run), {"checkpoints": UNREADABLE}),
        **guarded_updates(exports, {"take_panel": hidden}),
        **guarded_updates(suites, {"check_panel": hidden}),
    }


def show_results(run: Run | None) -> Updates:
    """Show the checkpoints of a run, and whether it can be continued."""
    if run is None:
        return {"checkpoints": "", **dict.fromkeys(HIDDEN[1:], gr.update(visible=False))}
    listed = results.checkpoints_of(run)
    has_ended = not run.is_active
    table = panel.checkpoints(listed, has_ended, has_ended and results.has_original(run))
    can_continue, said = False, ""
    if run.state == "finished":
        can_continue, said = _prospect(run)
    shown = gr.update(visible=can_continue)
    return {"checkpoints": table + said, "more_epochs": shown, "continue_run": shown}


def _prospect(run: Run) -> tuple[bool, str]:
    """Return whether a finished run can be continued, and what one more epoch would do."""
    try:
        plan = results.plan_continuation(run, 1)
    except SpecError:
        return False, ""
    return True, f"<p>{escape(plan.sentence)}</p>"


@dataclass(frozen=True)
class ResultHandlers:
    """Events of results, over one home folder."""

    home: Home
    show: Callable[..., Updates]
    """Returns what the Runs tab shows for a view."""

    def on_publish(self, published_step: str, **view: str | None) -> Updates:
        """Make a checkpoint the result of the shown run, or undo that."""
        run_id, step = view.get("run_id") or "", published_step or ""
        try:
            if step == results.UNDO:
                results.publish_original(self.home, run_id)
                said = render.notice("The result is the one that the training wrote.")
            elif step.isascii() and step.isdigit():
                run = results.publish(self.home, run_id, int(step[:9]))
                said = render.notice(f"The result is the checkpoint of step {run.result_step:,}.")
            else:
                return {}
        except TailorError as error:
            said = render.notice(in_words(error), "bad")
        return {**self.show(**view), "published_step": "", "run_message": said}

    def on_continue(self, more_epochs: float | None, **view: str | None) -> Updates:
        """Train the shown run for more epochs, as a new run, and show that."""
        try:
            before = runs.read(self.home, view.get("run_id") or "")
            plan = results.plan_continuation(before, more_epochs or 0.0)
            run = queue.submit(self.home, results.create_continuation(self.home, plan))
        except TailorError as error:
            said = render.notice(in_words(error), "bad")
            return {**self.show(**view), "run_message": said}
        shown = self.show(**{**view, "run_id": run.id})
        return {**shown, "run_id": run.id, "run_message": render.notice(plan.sentence)}
