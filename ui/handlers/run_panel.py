"""One run on the Runs tab: its panels, and the buttons that its state allows. Starts nothing."""

from collections.abc import Callable, Mapping
from functools import partial

import gradio as gr

from core.advise import Advice
from core.after_training.chat import sides_of
from core.runs import Run
from core.runs.results.failure_advice import advice_for, stall_warning
from ui.events import Updates
from ui.handlers.guard import guarded
from ui.monitor import ACTIONS, RETRY_BUTTONS
from ui.parts import show_buttons
from ui.render import run as panel

RUN_PANELS: Mapping[str, Callable[[Run], str]] = {
    "tiles": panel.tiles,
    "memory_table": panel.memory_table,
    "answers": panel.answers,
    "what_next": panel.what_next,
    "files": panel.files,
    "log": Run.log_tail,
}


def show_run(run: Run | None) -> Updates:
    """Draw every panel of a run. A damaged file costs its own panel."""
    if run is None:
        return {"run_header": panel.no_run(), **dict.fromkeys(RUN_PANELS, ""), **_show_actions(run)}
    header = guarded(lambda: panel.run_header(run, advice_for(run), stall_warning(run)))
    drawn = {name: guarded(partial(draw, run)) for name, draw in RUN_PANELS.items()}
    return {"run_header": header, **drawn, **_show_actions(run)}


def _show_actions(run: Run | None) -> Updates:
    """Show the buttons that the state of a run allows."""
    updates: Updates = {name: gr.update(visible=False) for name in ACTIONS}
    if run is None:
        return updates | show_buttons(RETRY_BUTTONS, ())
    updates["duplicate"] = gr.update(visible=True)
    if run.is_active:
        can_stop = run.state != "stopping"
        updates["stop"] = gr.update(visible=True, interactive=can_stop, value=ACTIONS["stop"][0])
    else:
        updates["delete"] = gr.update(visible=True)
    if run.state == "queued":
        updates["stop"] = gr.update(visible=True, interactive=True, value="Leave queue")
        # The order of a cluster's queue is its own matter.
        updates["move_up"] = updates["move_down"] = gr.update(visible=run.submission is None)
    if run.state in ("stopped", "failed", "interrupted"):
        label = "Resume" if run.has_checkpoint else "Start again"
        updates["resume"] = gr.update(visible=True, value=label)
    if len(sides_of(run)) > 1:
        updates["try_run"] = gr.update(visible=True)
    if run.state == "finished" and run.job.stage in ("sft", "cpt"):
        updates["next_stage"] = gr.update(visible=True)
    labels = [f"Retry: {advice.title}" for advice in retries(run)]
    return updates | show_buttons(RETRY_BUTTONS, labels)


def retries(run: Run | None) -> tuple[Advice, ...]:
    """Return the advice for a failed run that changes its job."""
    if run is None:
        return ()
    return tuple(advice for advice in advice_for(run) if advice.change)
