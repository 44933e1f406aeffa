"""Check events of a run: start, follow, stop. A thread waits for the check, never a handler."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import gradio as gr

from core import runs
from core.job import ChildError, RunNotFound, TailorError
from core.runs import Home, Run
from core.runs.checks import Identity, identity_suite
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from ui import render
from ui.events import Updates
from ui.handlers.guard import guarded
from ui.render import run as panel

THE_RESULT = "result"
"""Stands for the result of a run where the step of a checkpoint may be chosen. A browser sends
texts."""
RESULT_CHOICE = ("The result", THE_RESULT)
MAX_DIGITS = 9


@dataclass
class CheckTask:
    """Check of a run that this page's server has started."""

    share: float = 0.0
    error: str = ""
    is_running: bool = True
    is_stopped: bool = False

    def run(self, run: Run, suites: Sequence[Suite], checkpoint: int | None) -> None:
        """Check a run and note how it went."""
        try:
            checking.check(
                run,
                suites,
                checkpoint=checkpoint,
                on_progress=self._report,
                is_cancelled=lambda: self.is_stopped,
            )
        except ChildError as error:
            self.error = "" if error.cause == "cancelled" else checking.died_sentence(error)
        except TailorError as error:
            self.error = " ".join(map(render.sentences, error.problems))
        except OSError as error:
            self.error = f"The results cannot be kept: {error.strerror}."
        finally:
            self.is_running = False

    def _report(self, share: float) -> None:
        self.share = share


@dataclass(frozen=True)
class CheckHandlers:
    """Events of the panel that checks a run, over one home folder."""

    home: Home
    tasks: dict[str, CheckTask] = field(default_factory=dict)
    """Id of a run -> its last check."""

    def on_check(
        self, run_id: str, suites_chosen: list[str], check_what: str = THE_RESULT
    ) -> Updates:
        """Start a check of a run: of its result, or of the checkpoint whose step is chosen."""
        run = runs.read(self.home, run_id)
        named = [name for name in checking.suites_of(run) if name in (suites_chosen or ())]
        if not named:
            said = render.notice("Choose a suite.", "warned")
            return {**self._show(run), "check_status": said}
        suites = checking.find_suites(run, named)
        task = self.tasks.get(run.id)
        if task is None or not task.is_running:
            task = self.tasks[run.id] = CheckTask()
            name = f"check {run.id}"
            arguments = (run, suites, _step_in(check_what))
            threading.Thread(target=task.run, args=arguments, name=name, daemon=True).start()
        return self._show(run)

    def on_stop_check(self, run_id: str) -> Updates:
        """Stop the check of a run. Results of earlier checks stay."""
        if task := self.tasks.get(run_id):
            task.is_stopped = True
        return self.on_check_tick(run_id)

    def on_check_tick(self, run_id: str) -> Updates:
        """Show how far the check is."""
        try:
            return self._show(runs.read(self.home, run_id))
        except RunNotFound:
            return {"check_timer": gr.update(active=False)}

    def on_make_identity(
        self, run_id: str, identity_name: str, identity_maker: str, identity_purpose: str
    ) -> Updates:
        """Make the suite `identity` of a run from three answers."""
        identity = Identity(identity_name or "", identity_maker or "", identity_purpose or "")
        return self._keep(runs.read(self.home, run_id), identity_suite(identity))

    def on_make_held_out(self, run_id: str) -> Updates:
        """Make a suite of the rows that a run held out."""
        run = runs.read(self.home, run_id)
        return self._keep(run, checking.suite_of_held_out_rows(run))

    def show_panel(self, run: Run | None, *, is_new: bool) -> Updates:
        """Show the panel beside a run that has a result, and hide it for others.

        A run that was not shown before starts with the usual suites, one that still trains too: it
        is not new any more when it ends.
        """
        hidden: Updates = {
            "check_panel": gr.update(visible=False),
            "check_timer": gr.update(active=False),
        }
        if run is None:
            return hidden
        updates: Updates = {}
        if is_new:
            names = list(checking.suites_of(run))
            usual = [suite.name for suite in checking.find_suites(run, ())]
            updates["suites_chosen"] = gr.update(choices=names, value=usual)
            updates["identity_status"] = ""
        choices = [] if run.is_active else _what_answers(run)
        if not choices:
            updates["check_what"] = gr.update(choices=[RESULT_CHOICE], value=THE_RESULT)
            return {**updates, **hidden}
        what = gr.update(choices=choices, visible=len(choices) > 1)
        if is_new or RESULT_CHOICE not in choices:
            what["value"] = choices[0][1]
        updates["check_what"] = what
        return {**updates, "check_panel": gr.update(visible=True), **self._show(run)}

    def _keep(self, run: Run, suite: Suite) -> Updates:
        checking.keep_suite(run, suite)
        said = render.notice(f"{suite.name}: {len(suite.tests)} tests, ready to be asked.")
        chosen = gr.update(choices=list(checking.suites_of(run)), value=[suite.name])
        return {**self._show(run), "suites_chosen": chosen, "identity_status": said}

    def _show(self, run: Run) -> Updates:
        task = self.tasks.get(run.id)
        is_running = task is not None and task.is_running
        status = ""
        if task and is_running:
            status = render.progress("Asking the model before and after", task.share)
        elif task and task.error:
            status = render.notice(task.error, "bad")
        return {
            "check_timer": gr.update(active=is_running),
            "run_check": gr.update(interactive=not is_running),
            "stop_check": gr.update(visible=is_running),
            "check_status": status,
            "check_results": guarded(lambda: panel.checks(run)),
        }


def _step_in(text: str) -> int | None:
    """Return the step that was chosen; None for the result."""
    is_step = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    return int(text) if is_step else None


def _what_answers(run: Run) -> list[tuple[str, str]]:
    """Return (label, value) of what can be checked of a run: its result, and steps."""
    choices = []
    if (run.folder / checking.RESULT).is_dir():
        choices.append(RESULT_CHOICE)
    choices += [(f"The checkpoint of step {step:,}", str(step)) for step in checking.steps_of(run)]
    return choices
