"""Events of comparisons on the Runs tab: watch, stop, continue, take settings over."""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from core.after_training.compare import Comparison, checking, conduct, record
from core.after_training.compare.report import RunFigures, Summary, summary_of
from core.dataset import counted
from core.job import SpecError
from core.resolve import dataset_path
from core.runs import Home, launch
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import FormState
from ui.handlers.guard import guarded_updates
from ui.render import comparison as panel

MAX_LISTED = 40
BEST = "best"
"""Choice of the run that has done best, beside the places of all runs."""


def version_of(home: Home) -> str:
    """Return a text that changes when a comparison is started, stopped or carried on."""
    try:
        return str(record.folder_of(home).stat().st_mtime_ns)
    except OSError:  # none yet
        return ""


def show_comparisons(home: Home, comparison_id: str) -> Updates:
    """Show the chosen comparison, or the newest. A damaged file costs this panel alone."""
    hidden: Updates = {"comparisons_panel": gr.update(visible=False)}
    return guarded_updates(lambda: _show(home, comparison_id), hidden)


def _show(home: Home, comparison_id: str) -> Updates:
    listed = record.list_comparisons(home)[:MAX_LISTED]
    if not listed:
        return {"comparisons_panel": gr.update(visible=False)}
    chosen = next((each for each in listed if each.id == comparison_id), listed[0])
    summary = summary_of(home, chosen)
    is_active = conduct.is_active(home, chosen)
    can_go_on = (
        chosen.num_missing
        or any(_may_continue(chosen, each) for each in summary.runs)
        or checking.runs_to_check(home, chosen)
    )
    return {
        "comparisons_panel": gr.update(visible=True),
        "comparison_id": gr.update(choices=[_choice(each) for each in listed], value=chosen.id),
        "comparison_runs": panel.overview(chosen, summary),
        "stop_comparison": gr.update(visible=is_active),
        "continue_comparison": gr.update(visible=bool(can_go_on) and not chosen.is_open),
        "stop_trial": gr.update(visible=is_active),
        "chosen_trial": gr.update(choices=_choices_of_runs(summary)),
    }


def _may_continue(comparison: Comparison, run: RunFigures) -> bool:
    """Return True for a run that Continue would begin or continue."""
    if run.state == "stopped":
        return run.trial.id in comparison.stopped
    return run.state in ("planned", "interrupted")


def _choice(comparison: Comparison) -> tuple[str, str]:
    num_runs = len(comparison.trials) + comparison.num_missing
    return f"{comparison.id} · {counted(num_runs, 'run')} · {comparison.question}", comparison.id


def _choices_of_runs(summary: Summary) -> list[tuple[str, str]]:
    """Return the runs by their place. No run of a comparison ever changes its place."""
    named = [(each.place, panel.label(each)) for each in summary.runs]
    best = "Best run"
    if summary.best:
        best = f"Best run: {panel.label(summary.best.shown)}"
    return [(best, BEST), *((said, str(place)) for place, said in sorted(named))]


@dataclass(frozen=True)
class ComparisonHandlers:
    """Events of comparisons, over one home folder."""

    home: Home
    show: Callable[..., Updates]
    """Returns what the Runs tab shows for a view."""

    def on_choose_comparison(self, **view: str | None) -> Updates:
        """Show another comparison, with its best run chosen."""
        shown = self.show(**view)
        choices = shown.get("chosen_trial")
        if isinstance(choices, dict):
            shown["chosen_trial"] = {**choices, "value": BEST}
        return {**shown, "comparison_message": ""}

    def on_stop_comparison(self, **view: str | None) -> Updates:
        """Stop every run of the shown comparison, each with a checkpoint, and its checks."""
        done = "Stopping all its runs, each with a checkpoint, and its checks. Continue undoes it."
        return self._act(conduct.stop, done, view)

    def on_continue_comparison(self, **view: str | None) -> Updates:
        """Continue the runs that were stopped together, and begin what was not begun."""
        return self._act(conduct.start, "Continuing what was stopped or not begun.", view)

    def on_stop_trial(self, chosen_trial: str, **view: str | None) -> Updates:
        """Stop the chosen run alone. A waiting one leaves the queue."""
        figures = self._chosen(view.get("comparison_id") or "", chosen_trial)
        if figures is None or figures.run is None or not figures.run.is_active:
            said = render.notice("Choose a run that trains or waits.", "warned")
        else:
            launch.request_stop(figures.run)
            said = render.notice(f"Stopping {panel.label(figures)}. The others continue.")
        return {**self.show(**view), "comparison_message": said}

    def on_show_runs(self, **view: str | None) -> Updates:
        """Tick the runs of the shown comparison, so that their curves are on one plot."""
        comparison_id = view.get("comparison_id") or ""
        ids = [trial.id for trial in record.read_comparison(self.home, comparison_id).trials]
        compared = " ".join(filter(None, ids))
        return {**self.show(**{**view, "compared": compared}), "compared": compared}

    def on_use_settings(
        self, comparison_id: str, chosen_trial: str, form_state: FormState
    ) -> Updates:
        """Fill the form with the settings of the chosen run."""
        figures = self._chosen(comparison_id, chosen_trial)
        if figures is None:
            said = "No run has finished yet. Choose one of the others."
            return {"comparison_message": render.notice(said, "warned")}
        fields = dict(figures.trial.fields)
        if not fields:
            said = f"No job can be like {panel.label(figures)}: {figures.reason}."
            return {"comparison_message": render.notice(said, "bad")}
        if fields["dataset"] == str(dataset_path("demo", str(fields["stage"]))):
            fields["dataset"] = "demo"
        state = form_state.filled_with(fields, figures.trial.settings.keys())
        said = f"The form holds the settings of {panel.label(figures)}."
        return {
            **fields,
            "form_state": state,
            "tabs": gr.update(selected="train"),
            "start_message": render.notice(said),
        }

    def _chosen(self, comparison_id: str, chosen_trial: str) -> RunFigures | None:
        """Return the run that is chosen, None for the best before one has finished."""
        summary = summary_of(self.home, record.read_comparison(self.home, comparison_id or ""))
        if chosen_trial in ("", BEST):
            return summary.best.shown if summary.best else None
        for each in summary.runs:
            if str(each.place) == chosen_trial:
                return each
        return None

    def _act(
        self,
        action: Callable[[Home, Comparison], Comparison],
        done: str,
        view: dict[str, str | None],
    ) -> Updates:
        """Do something with the shown comparison, and say how it went."""
        try:
            action(self.home, record.read_comparison(self.home, view.get("comparison_id") or ""))
            said = render.notice(done)
        except SpecError as error:
            said = render.notice(in_words(error), "bad")
        return {**self.show(**view), "comparison_message": said}
