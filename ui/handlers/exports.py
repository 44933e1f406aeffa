"""Export events of a run: start, follow, stop. Never exports, never waits for an export."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import gradio as gr

from core import runs
from core.after_training.export import FORMS, Export, launch, list_exports
from core.after_training.export.card import keep_card, new_card
from core.after_training.export.forms import DEFAULT_QUANT, FROM_ROWS, WITHOUT_MATRIX
from core.after_training.export.ollama import add_to_ollama, find_ollama
from core.after_training.export.plan import ExportPlan, Upload, plan_export
from core.after_training.export.tools import (
    LLAMA_VARIABLE,
    NAME_YOUR_OWN,
    TO_INSTALL,
    find_tools,
    install,
)
from core.after_training.export_checks import (
    Numbers,
    can_be_checked,
    check_export,
    find_export,
    measure_both,
    measured_both,
    require_both,
)
from core.job import Problem, RunNotFound, SpecError, TailorError
from core.runs import Home, Run
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.methods import METHODS
from ui.events import Updates
from ui.exports import EXPORT_BUTTONS, EXPORT_TILES, INSTALL
from ui.handlers.export_activities import ExportActivities, ExportActivity
from ui.handlers.guard import guarded
from ui.render import exports as panel
from ui.render import notice

ACTIVE = ("starting", "running")
USUAL_BASE, BOTH = "trained", "both"
SOME_REPOSITORY = "owner/name"
"""Stands for the repository while none is named: the size is the same."""


@dataclass(frozen=True)
class ExportHandlers:
    """Events of the panel that takes a result to other programs, over one home folder."""

    home: Home
    activities: ExportActivities = field(default_factory=ExportActivities)

    def on_export(
        self,
        form: str,
        run_id: str,
        export_quant: str,
        export_base: str,
        *,
        suites_chosen: list[str] | None = None,
        export_matrix: bool = False,
    ) -> Updates:
        """Start an export and follow it; with "both" one over each base, and their checks."""
        run = runs.read(self.home, run_id)
        numbers = _numbers(form, export_quant, bool(export_matrix))
        if export_base == BOTH:
            self._measure_both(run, form, numbers, suites_chosen)
        else:
            launch.start(run, plan_export(run, form, base=export_base, **asdict(numbers)))
        return show_exports(run, export_quant, export_base, self.activities)

    def _measure_both(
        self, run: Run, form: str, numbers: Numbers, suites_chosen: list[str] | None
    ) -> None:
        require_both(run, form)
        plan_export(run, form, **asdict(numbers))  # says what is in the way before it starts
        suites = _suites(run, suites_chosen)

        def work(task: ExportActivity) -> None:
            stopped = task.was_stopped
            measure_both(run, form, suites, task.report, numbers=numbers, is_cancelled=stopped)

        self.activities.start(run, "Measuring both bases", work)

    def on_check_export(
        self,
        run_id: str,
        export_quant: str,
        export_base: str,
        checked_export: str | None,
        suites_chosen: list[str] | None = None,
    ) -> Updates:
        """Start the check of an export, with the suites that the Check panel has chosen."""
        run = runs.read(self.home, run_id)
        export = find_export(run, checked_export or _newest(run))
        suites = _suites(run, suites_chosen)
        text = f"Asking {export.name}"

        def work(task: ExportActivity) -> None:
            def show(share: float) -> None:
                task.report(text, share)

            check_export(run, export, suites, on_progress=show, is_cancelled=task.was_stopped)

        self.activities.start(run, text, work)
        return show_exports(run, export_quant, export_base, self.activities)

    def on_publish(
        self,
        run_id: str,
        export_repo: str,
        export_token: str,
        export_private: bool,
        export_card: str,
        *,
        export_rows: bool = False,
    ) -> Updates:
        """Send what the run has trained to the Hub, with the token that was typed in."""
        run = runs.read(self.home, run_id)
        upload = Upload(
            (export_repo or "").strip(),
            is_private=bool(export_private),
            with_data=bool(export_rows),
        )
        plan = plan_export(run, "hub", upload=upload)
        token = (export_token or "").strip()
        if not token:
            # That of the machine's owner is not for everybody who may use this page.
            raise SpecError(Problem("token", "the token is missing", "paste one that may write"))
        if (export_card or "").strip():
            keep_card(run, export_card)
        launch.start(run, plan, token)
        shown = show_exports(run, DEFAULT_QUANT, USUAL_BASE, self.activities)
        return {**shown, "export_token": "", "export_rows": False}

    def on_show_card(self, run_id: str, export_repo: str) -> Updates:
        """Write the model card from what the run knows, to be edited."""
        run = runs.read(self.home, run_id)
        return {"export_card": new_card(run, (export_repo or "").strip() or run.id, _sent(run))}

    def on_export_settings(self, run_id: str, export_quant: str, export_base: str) -> Updates:
        """Show the sizes with other numbers or another base."""
        return self._show(run_id, export_quant, export_base)

    def on_export_tick(self, run_id: str, export_quant: str, export_base: str) -> Updates:
        """Show how far the export is."""
        return self._show(run_id, export_quant, export_base)

    def on_stop_export(self, run_id: str, export_quant: str, export_base: str) -> Updates:
        """Stop the export or the check that is under way; what is finished is kept."""
        run = runs.read(self.home, run_id)
        self.activities.stop(run.id)
        if name := launch.active_export(run):
            launch.request_stop(run, name)
        return show_exports(run, export_quant, export_base, self.activities)

    def on_install_tools(self, run_id: str, export_quant: str, export_base: str) -> Updates:
        """Start to install the converters to GGUF."""
        run = runs.read(self.home, run_id)

        def work(task: ExportActivity) -> None:
            install(self.home, task.report, task.was_stopped)

        self.activities.start(run, "Downloading the converters", work)
        return show_exports(run, export_quant, export_base, self.activities)

    def on_add_to_ollama(self, run_id: str, export_quant: str, export_base: str) -> Updates:
        """Let this machine's Ollama take the newest export for it. Takes as long as a copy."""
        run = runs.read(self.home, run_id)
        exports = _for_ollama(run)
        if not exports:
            fix = "press Make it for Ollama"
            raise SpecError(Problem("ollama", "there is no export for Ollama yet", fix))
        name = add_to_ollama(exports[-1])
        updates = show_exports(run, export_quant, export_base, self.activities)
        said = notice(f"Ollama has it now: type ollama run {name}", "good")
        return {**updates, "export_status": said}

    def _show(self, run_id: str, export_quant: str, export_base: str) -> Updates:
        try:
            run = runs.read(self.home, run_id)
        except RunNotFound:
            return {"export_timer": gr.update(active=False)}
        return show_exports(run, export_quant, export_base, self.activities)


def show_panel(run: Run | None, activities: ExportActivities, *, is_new: bool) -> Updates:
    """Show the panel beside a run; a run that was not shown before starts with the usual
    choices."""
    updates = show_exports(run, DEFAULT_QUANT, USUAL_BASE, activities)
    if not is_new:
        return updates
    chosen = gr.update(value=USUAL_BASE)
    if run is not None:
        chosen = gr.update(value=USUAL_BASE, visible=_is_4bit(run))
    fresh: Updates = {
        "export_quant": DEFAULT_QUANT,
        "export_base": chosen,
        "export_matrix": False,
        "export_rows": False,
        "export_card": "",
    }
    if run is not None and "checked_export" in updates:  # the choice was that of another run
        fresh["checked_export"] = gr.update(choices=_checkable(run), value=None)
    return {**updates, **fresh}


def show_exports(
    run: Run | None, quant: str, base: str, activities: ExportActivities | None = None
) -> Updates:
    """Show the panel of a run that has a result, and hide it for others."""
    if run is None or run.is_active or not (run.folder / "output").is_dir():
        return {"take_panel": gr.update(visible=False), "export_timer": gr.update(active=False)}
    activities = activities or ExportActivities()
    base = USUAL_BASE if base == BOTH else base
    plans = {form: _plan(run, form, quant, base) for form in EXPORT_TILES}
    is_busy = bool(launch.active_export(run)) or activities.is_running(run.id)
    updates: Updates = {
        "take_panel": gr.update(visible=True),
        "export_timer": gr.update(active=is_busy),
        "export_status": activities.shown(run.id) + guarded(partial(_statuses, run)),
        "exports": guarded(
            lambda: panel.both(measured_both(run)) + panel.exports(run.id, list_exports(run))
        ),
        "stop_export": gr.update(visible=is_busy),
        "install_tools": gr.update(
            visible=find_tools(run.home).folder is None, interactive=not is_busy
        ),
        "add_to_ollama": gr.update(visible=bool(find_ollama() and _for_ollama(run))),
        "export_base": gr.update(visible=_is_4bit(run)),
        **_show_checks(run, is_busy),
    }
    for form, place in EXPORT_TILES.items():
        updates[place] = panel.tile(FORMS[form].title, FORMS[form].help, plans[form])
    sent = _plan(run, "hub", quant, base)
    updates["publish_tile"] = panel.tile("", FORMS["hub"].help, sent)
    updates["publish"] = gr.update(interactive=not is_busy and isinstance(sent, ExportPlan))
    for form, button in EXPORT_BUTTONS.items():
        updates[button] = gr.update(interactive=not is_busy and _is_possible(plans, form))
    return updates


def _show_checks(run: Run, is_busy: bool) -> Updates:
    """Show which exports can be checked."""
    choices = _checkable(run)
    return {
        "check_exports": gr.update(visible=bool(choices)),
        "checked_export": gr.update(choices=choices),
        "check_export": gr.update(interactive=not is_busy),
    }


def _numbers(form: str, quant: str, has_matrix: bool) -> Numbers:
    """Return the chosen numbers, where a form has them and they use a matrix."""
    if not FORMS[form].has_quant:
        return Numbers()
    uses_matrix = has_matrix and quant not in WITHOUT_MATRIX
    return Numbers(quant, imatrix=FROM_ROWS if uses_matrix else "")


def _checkable(run: Run) -> list[str]:
    """Return the names of the exports that can be checked."""
    return [each.name for each in list_exports(run) if can_be_checked(each)]


def _newest(run: Run) -> str:
    """Return the name of the newest export that can be checked, "" without one."""
    found = [each for each in list_exports(run) if can_be_checked(each)]
    found.sort(key=lambda each: each.folder.stat().st_mtime)
    return found[-1].name if found else ""


def _suites(run: Run, chosen: Sequence[str] | None) -> tuple[Suite, ...]:
    """Return the chosen suites of a run, the usual ones if none are."""
    named = [name for name in checking.suites_of(run) if name in (chosen or ())]
    return checking.find_suites(run, named)


def _for_ollama(run: Run) -> Sequence[Export]:
    """Return the exports for Ollama, the newest last."""
    found = [each for each in list_exports(run) if each.manifest.form == "ollama"]
    return sorted(found, key=lambda each: each.folder.stat().st_mtime)


def _sent(run: Run) -> str:
    return "adapter" if run.job.trains_adapter else "merged"


def _is_4bit(run: Run) -> bool:
    return METHODS[run.job.method].base_bits == 4


def _is_possible(plans: Mapping[str, ExportPlan | TailorError], form: str) -> bool:
    return isinstance(plans.get(form), ExportPlan)


def _plan(run: Run, form: str, quant: str, base: str) -> ExportPlan | TailorError:
    try:
        has_quant = FORMS[form].has_quant
        upload = Upload(SOME_REPOSITORY) if form == "hub" else None
        numbers = quant if has_quant else ""
        return plan_export(run, form, quant=numbers, base=base, upload=upload)
    except TailorError as error:
        return TailorError(*(_with_button(each) for each in error.problems))


def _with_button(problem: Problem) -> Problem:
    """Name the button of the page where a problem names the command of the terminal."""
    fix = problem.fix.replace(TO_INSTALL, f"press {INSTALL}")
    fix = fix.replace(NAME_YOUR_OWN, f"start Tailor with `{LLAMA_VARIABLE}` = your llama.cpp")
    return replace(problem, fix=fix)


def _statuses(run: Run) -> str:
    found = launch.unfinished(run)
    shown = [each for each in found if each[1].state in ACTIVE] or found
    return "".join(
        panel.status(name, status, str(launch.log_of(run, name))) for name, status in shown
    )
