"""What happens to the runs: started or queued, watched, stopped, resumed, deleted. Never trains and never waits."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import gradio as gr

from core import runs
from core.advise import Advice
from core.device import this_machine
from core.job import RunNotFound, SpecError
from core.resolve import resolve
from core.runs import Home, Run, launch, queue
from core.runs.failure_advice import advice_for, stall_warning
from ui import render
from ui.form import LABELS
from ui.handlers.data import checked, require_usable
from ui.handlers.menu import data_choices
from ui.handlers.preview import Previews
from ui.handlers.shown import Shown
from ui.monitor import SHOWN_REMEDIES
from ui.render import history, plots
from ui.render import run as panel

MOST_LISTED, MOST_COMPARED = 60, 7


@dataclass(frozen=True)
class View:
    """What a person looks at on the Runs tab: the chosen run, those in the comparison, the words searched for."""

    run_id: str = ""
    compared: str = ""
    run_search: str = ""
    written_of: str = ""
    """The run whose name, tags and notes stand in the boxes, saved or not."""

    @classmethod
    def of(cls, shown: Mapping[str, str | None]) -> "View":
        """What the page's boxes say; an empty one may hold None."""
        return cls(**{name: text or "" for name, text in shown.items()})

    @property
    def ids(self) -> tuple[str, ...]:
        """The runs in the comparison."""
        return tuple(dict.fromkeys(self.compared.split()))[:MOST_COMPARED]


class RunHandlers:
    """The events of the runs, over one home folder."""

    home: Home
    previews: Previews

    def on_load(self) -> Shown:
        """A new page: the newest active run is selected, and shown first if there is one."""
        chosen = _newest(runs.list_runs(self.home))
        tab = {"tabs": gr.update(selected="runs")} if chosen and chosen.is_active else {}
        return (
            self._choose(View(), chosen)
            | tab
            | {"dataset": gr.update(choices=data_choices(self.home))}
        )

    def on_start(self, **form: object) -> Shown:
        """Makes a run of the form's job, starts it or puts it into the queue, and shows it."""
        try:
            resolved = resolve(form, rows=self.previews.statistics(form))
            resolved.require_trainable()
            for field, path in resolved.files:
                require_usable(field, path, checked(path, resolved.job.stage))
            if refused := self.previews.refusals(resolved):
                raise SpecError(*refused)
            run = runs.create(self.home, resolved, resolved.forecast())
            run = queue.submit(self.home, run)
        except SpecError as error:
            return {"start_message": render.notice(f"Not started. {_words(error)}.", "bad")}
        except OSError as error:
            return {
                "start_message": render.notice(
                    f"Not started. {error.strerror}: {error.filename}", "bad"
                )
            }
        said = f"{run.id} waits for its turn." if run.state == "queued" else f"Started {run.id}."
        shown = self._choose(View(), run)
        return shown | {"tabs": gr.update(selected="runs"), "start_message": render.notice(said)}

    def on_pick(self, **view: str) -> Shown:
        """Another run was chosen. By now it may be a third one: the choice is the page's."""
        return self._show(View.of(view)) | {"run_message": ""}

    def on_view(self, **view: str) -> Shown:
        """Other runs are compared, or searched for."""
        return self._show(View.of(view))

    def on_tick(self, seen: str, **view: str) -> Shown:
        """Time has passed: says so if something on disk has changed since it was seen."""
        if not seen:
            return {}  # the page is still loading, and what it is about to show must not be chosen over
        return {} if self._seen(View.of(view)) == seen else {"news": str(time.monotonic_ns())}

    def on_news(self, seen: str, **view: str) -> Shown:
        """Something has changed: shows it, unless it has been shown meanwhile.

        The choice stays as it is: this may have been under way when another run was started or chosen.
        """
        looked_at = View.of(view)
        if not looked_at.run_id and (newest := _newest(runs.list_runs(self.home))):
            return self._choose(looked_at, newest)
        return {} if self._seen(looked_at) == seen else self._show(looked_at)

    def on_stop(self, **view: str) -> Shown:
        """Asks the shown run to save a checkpoint and end; one that waits leaves the queue."""
        return self._act(view, launch.request_stop)

    def on_resume(self, **view: str) -> Shown:
        """Continues the shown run from its newest checkpoint, now or when its turn comes."""
        return self._act(view, lambda run: queue.submit(self.home, run))

    def on_move(self, direction: Literal["up", "down"], **view: str) -> Shown:
        """The shown run changes its place in the queue."""
        return self._act(view, lambda run: queue.move(self.home, run.id, direction))

    def on_annotate(self, title: str, tags: str, notes: str, **view: str) -> Shown:
        """A name, tags and notes were given to the run that they were shown of."""

        def annotate(_shown: Run) -> None:
            runs.annotate(
                self.home, view["written_of"], title=title, tags=tags.split(","), notes=notes
            )

        return self._act(view, annotate, "Saved.", "about_message")

    def on_delete(self, **view: str) -> Shown:
        """The shown run goes to the trash; the button that brings it back appears."""
        shown = self._act(view, lambda run: runs.delete(self.home, run.id))
        if self._find(view["run_id"]):
            return shown
        return self._choose(View.of(view), _newest(runs.list_runs(self.home)))

    def on_restore(self, **view: str) -> Shown:
        """The run deleted last comes back."""
        deleted = sorted(
            runs.deleted(self.home), key=lambda name: (self.home.trash / name).stat().st_ctime
        )
        try:
            back = runs.restore(self.home, deleted[-1]) if deleted else None
        except (RunNotFound, SpecError) as error:
            return {"run_message": render.notice(str(error), "bad")}
        return self._choose(View.of(view), back)

    def on_empty_trash(self, **view: str) -> Shown:
        """What was deleted is removed from the disk."""
        runs.empty_trash(self.home)
        return self._show(View.of(view))

    def on_live(self) -> Shown:
        """The running run in the top line was pressed."""
        return self.on_load() | {"tabs": gr.update(selected="runs")}

    def on_reuse(self, run_id: str) -> Shown:
        """Fills the form with the shown run's job."""
        run = self._find(run_id)
        return {**runs.fields_again(run), "tabs": gr.update(selected="train")} if run else {}

    def on_remedy(self, place: int, run_id: str) -> Shown:
        """Fills the form with the shown run's job, changed so that it may go better."""
        run = self._find(run_id)
        offered = _retries(run)
        if run is None or place >= len(offered):
            return {}
        return self.on_reuse(run_id) | dict(offered[place].change)

    def on_next_stage(self, run_id: str) -> Shown:
        """Fills the form with a job that goes on from the shown run's result."""
        run = self._find(run_id)
        if run is None or run.state != "finished":
            return {}
        return {**runs.fields_of_next_stage(run, "dpo"), "tabs": gr.update(selected="train")}

    def _act(
        self,
        view: dict[str, str],
        action: Callable[[Run], object],
        done: str = "",
        place: str = "run_message",
    ) -> Shown:
        """Does something with the shown run, and says in its place what went wrong with it, or what was done."""
        said = render.notice(done)
        if run := self._find(view["run_id"]):
            try:
                action(run)
            except (RunNotFound, SpecError) as error:
                said = render.notice(
                    _words(error) if isinstance(error, SpecError) else str(error), "bad"
                )
        return self._show(View.of(view)) | {place: said}

    def _find(self, run_id: str) -> Run | None:
        try:
            return runs.read(self.home, run_id) if run_id else None
        except (RunNotFound, SpecError):
            return None

    def _choose(self, view: View, run: Run | None) -> Shown:
        """A run is looked at from now on."""
        chosen = replace(view, run_id=run.id if run else "")
        return self._show(chosen) | {"run_id": chosen.run_id, "run_message": ""}

    def _show(self, view: View) -> Shown:
        """Everything on the Runs tab, and the top line.

        What is seen is noted first: what changes on disk while the rest is drawn is shown by the next tick.
        """
        seen = self._seen(view)
        listed = runs.list_runs(self.home)
        run = self._find(view.run_id)
        compared = [found for run_id in view.ids if (found := self._find(run_id))]
        active = next((each for each in listed if each.is_active and each.state != "queued"), None)
        return (
            self._history(view, listed)
            | _written(view, run)
            | {
                "top": render.top_line(this_machine().summary()),
                "live": gr.update(
                    value=panel.live_label(active) if active else "", visible=active is not None
                ),
                "start": gr.update(value="Add to queue" if active else "Start training"),
                "run_header": panel.run_header(
                    run, advice_for(run) if run else (), stall_warning(run) if run else None
                ),
                **_actions(run),
                "tiles": panel.tiles(run),
                "figures": plots.figures(run, compared if len(compared) > 1 else ()),
                "comparison": gr.update(visible=len(compared) > 1),
                "differences": history.differences(compared),
                "memory_table": panel.memory_table(run),
                "answers": panel.answers(run),
                "what_next": panel.what_next(run),
                "files": panel.files(run),
                "log": runs.log_tail(run.folder) if run else "",
                "seen": seen,
            }
        )

    def _history(self, view: View, listed: tuple[Run, ...]) -> Shown:
        """The list on the left."""
        found = runs.search(listed, view.run_search)
        is_deleted = bool(runs.deleted(self.home))
        return {
            "run_list": history.run_list(found[:MOST_LISTED], len(found), view.run_id, view.ids),
            "history_facts": history.facts(listed),
            "restore": gr.update(visible=is_deleted),
            "empty_trash": gr.update(visible=is_deleted),
        }

    def _seen(self, view: View) -> str:
        """A short text that changes when there is something new to show."""
        run = self._find(view.run_id)
        parts = [repr(replace(view, written_of="")), runs.list_fingerprint(self.home)]
        parts += [run.state, runs.fingerprint(run.folder), stall_warning(run) or ""] if run else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _written(view: View, run: Run | None) -> Shown:
    """The boxes for what a person writes about a run: filled when another one is shown, and else left alone."""
    if view.written_of == view.run_id:
        return {}
    about = run.about if run else runs.About()
    said: Shown = {"title": about.title, "tags": ", ".join(about.tags), "notes": about.notes}
    return said | {"written_of": view.run_id, "about_message": ""}


def _actions(run: Run | None) -> Shown:
    """The buttons at a run, as its state allows them."""
    is_ended = run is not None and not run.is_active
    waits = run is not None and run.state == "queued"
    is_early = run is not None and run.state in ("stopped", "failed", "interrupted")
    goes_on = run is not None and run.state == "finished" and run.job.stage in ("sft", "cpt")
    stop = gr.update(
        visible=run is not None and run.is_active,
        interactive=run is None or run.state != "stopping",
        value="Leave the queue" if waits else "Stop and save",
    )
    seen = {"resume": is_early, "sooner": waits, "later": waits, "next_stage": goes_on}
    buttons = {name: gr.update(visible=is_seen) for name, is_seen in seen.items()}
    if run is not None and is_early:
        buttons["resume"] = gr.update(
            visible=True, value="Resume" if runs.has_checkpoint(run.folder) else "Start again"
        )
    offered = [*_retries(run), *[None] * SHOWN_REMEDIES][:SHOWN_REMEDIES]
    retries = {
        f"remedy_{place}": gr.update(
            visible=each is not None, value=f"Retry: {each.title}" if each else ""
        )
        for place, each in enumerate(offered)
    }
    return (
        buttons
        | retries
        | {
            "stop": stop,
            "reuse": gr.update(visible=run is not None),
            "delete": gr.update(visible=is_ended),
        }
    )


def _retries(run: Run | None) -> tuple[Advice, ...]:
    """What would help a failed run and is a change of its job."""
    return tuple(each for each in advice_for(run) if each.change) if run else ()


def _newest(listed: tuple[Run, ...]) -> Run | None:
    """The run to show when none was chosen: the newest that is under way, else that waits, else the newest."""
    active = [run for run in listed if run.is_active]
    return next(
        (run for run in active if run.state != "queued"), next(iter([*active, *listed]), None)
    )


def _words(error: SpecError) -> str:
    return "; ".join(
        f"{LABELS.get(each.field, each.field)}: {each.problem}; {each.fix}"
        for each in error.problems
    )
