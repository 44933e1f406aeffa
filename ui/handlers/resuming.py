"""Events of a resume on other devices, or at another place. Starts runs; never waits for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import gradio as gr

from core import runs
from core.device import cards_together
from core.job import SpecError, TailorError
from core.job.places import is_restricted
from core.runs import Home, Run, results
from core.runs.engines import Placement
from core.runs.sentences import devices_sentence, earlier_script, script_sentence
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.placing import PlacingHandlers, chosen, placement_of
from ui.place_boxes import PLACE_BOXES, RESUME

CAN_RESUME = ("stopped", "failed", "interrupted")


def show_resume(run: Run | None, placing: PlacingHandlers, *, is_new: bool) -> Updates:
    """Show the choice of devices and place where it is of use. The boxes of a new run are filled;
    those of the same one keep what a user has typed."""
    updates: Updates = {"resume_panel": gr.update(visible=False)}
    if run is None:
        return updates
    if run.state in CAN_RESUME and _has_choice(run, placing):
        verb = "Resume" if run.has_checkpoint else "Start again"
        updates = {
            "resume_panel": gr.update(visible=True, label=f"{verb} on other devices"),
            "resume_note": render.notice(_note(run), "plain"),
            "resume_there": f"{verb} with these",
            f"{RESUME}where": gr.update(choices=placing.offered(run.placement.engine)),
        }
    if is_new:
        updates |= {"resume_devices": run.job.num_devices, **_boxes_of(run, placing)}
    return updates


def _has_choice(run: Run, placing: PlacingHandlers) -> bool:
    """Return True if a run may continue on other devices than it has."""
    if run.job.num_devices > 1 or not run.placement.is_here or placing.found:
        return True
    try:
        return len(cards_together(run.job.device, 0)) > 1
    except SpecError:  # its GPU is gone
        return False


def _note(run: Run) -> str:
    """Return what a number of devices may be, and what it does not change."""
    said = f"{devices_sentence(run)} Another number of devices keeps these rows."
    if results.stays_divided(run):
        said += " Its model is divided (fsdp), and needs 2 or more."
    return said


def _boxes_of(run: Run, placing: PlacingHandlers) -> Updates:
    """Fill the boxes with where a run has trained."""
    place = run.placement
    if place.engine not in [name for _label, name in placing.offered(place.engine)]:
        place = Placement()  # its programs are started by hand
    if is_restricted():
        place = replace(place, address="")
    updates = placing.settings(place.engine, RESUME)
    choices = placing.offered(place.engine)
    updates[f"{RESUME}where"] = gr.update(choices=choices, value=place.engine)
    for box, field in PLACE_BOXES.items():
        shown = updates.get(RESUME + box)
        look = shown if isinstance(shown, dict) else {}
        updates[RESUME + box] = {**gr.update(), **look, "value": getattr(place, field)}
    return updates


@dataclass(frozen=True)
class ResumeHandlers:
    """Events of the panel beside Resume, over one home folder."""

    home: Home
    placing: PlacingHandlers
    show: Callable[..., Updates]
    """Returns what the Runs tab shows for a view."""

    def on_resume_where(self, resume_where: str) -> Updates:
        """Ask for what the chosen cluster has to know."""
        return self.placing.settings(resume_where, RESUME)

    def on_resume_there(
        self,
        resume_devices: float | None,
        resume_where: str,
        resume_place: Mapping[str, object],
        **view: str | None,
    ) -> Updates:
        """Resume the shown run on so many devices of a place. A refusal leaves it as it is."""
        boxes = {name.removeprefix(RESUME): value for name, value in resume_place.items()}
        try:
            run = runs.read(self.home, view.get("run_id") or "")
            placement = _placement(run, resume_where, boxes)
            earlier = earlier_script(run)
            run = results.resume_on(self.home, run, resume_devices, placement)
            words = (_sent(run), devices_sentence(run), script_sentence(run, earlier))
            said = render.notice(" ".join(filter(None, words)))
        except TailorError as error:
            said = render.notice(f"Not resumed. {in_words(error)}.", "bad")
        return {**self.show(**view), "run_message": said}


def _placement(run: Run, where: str, boxes: Mapping[str, object]) -> Placement:
    """Return where a run shall continue. Those who cannot name an address keep that of the run.

    Raises SpecError.
    """
    before = run.placement
    if is_restricted() and where == before.engine and before.address:
        return Placement.parse(chosen(where, {**boxes, "address": before.address}))
    return placement_of(where, boxes)


def _sent(run: Run) -> str:
    return f"Sent: {run.submission.sentence}." if run.submission else ""
