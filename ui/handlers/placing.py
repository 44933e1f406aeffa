"""Choose where a run trains: this machine, or a cluster that it sees. Sends nothing."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

import gradio as gr

from core.device import machine
from core.job import JobSpec, Problem, SpecError
from core.job.places import is_restricted
from core.runs.engines import ENGINES, HERE, Found, Placement, engine_of, found_engines
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import Answer
from ui.handlers.command import command_line
from ui.handlers.start import missing_gpu_message
from ui.place_boxes import CARDS, PLACE_BOXES, THIS_MACHINE, USUAL

NOTHING_ASKED: Mapping[str, object] = MappingProxyType({})
"""Boxes of a page on which no cluster is chosen."""
STORAGE = "The run folder must lie on storage that the nodes see."
CARD = "The estimate is for the card chosen as GPU: choose that of the cluster."
QUEUE_EACH = "Queue one run of each"
"""Button of the comparison, where it trains on this machine."""
NAMED_BY_USERS = "ray"
"""Engine whose cluster a user may name on the page; guests may not."""


@dataclass(frozen=True)
class PlacingHandlers:
    """Events of the choice where a run trains."""

    found: dict[str, Found] = field(default_factory=dict)
    """Clusters that were found last, by the id of their engine."""

    def on_look_for_clusters(self) -> Updates:
        """Offer the clusters that are found."""
        found = found_engines()  # takes seconds, in which another page may look at the last ones
        self.found.clear()
        self.found.update(found)
        choices = self.offered()
        updates = {**self.settings(HERE), **_comparison(HERE)}
        updates["where"] = gr.update(choices=choices, value=HERE)
        return updates

    def offered(self, used: str = HERE) -> list[tuple[str, str]]:
        """Return the places that can be chosen, each with its label; `used` is one of them, unless
        its programs are started by hand."""
        also = {used, "" if is_restricted() else NAMED_BY_USERS}
        names = [name for name in ENGINES if name in self.found or name in also]
        names = [name for name in names if ENGINES[name].starts_programs]
        return [THIS_MACHINE, *((f"My cluster ({ENGINES[name].title})", name) for name in names)]

    def on_where(self, answer: Answer, where: str, **place: object) -> Updates:
        """Ask for what the chosen cluster has to know."""
        shown = {**place, "partition": ""}
        command = self.on_box(answer, where, **shown)
        said = {"start_message": missing_gpu_message(answer, where)}
        cards = shown_cards(answer, where)
        return {**self.settings(where), **_comparison(where), **command, **said, **cards}

    def on_cards(self, cards: Sequence[str], answer: Answer, where: str) -> Updates:
        """Put the GPUs that are ticked into the form. The ticks go back if a job cannot name them,
        or if none is left."""
        num_cards = len(machine.this_machine().gpus)
        places = {int(each) for each in cards if each.isdecimal() and int(each) < num_cards}
        if not places:
            return shown_cards(answer, where)
        try:
            device = machine.device_of_places(places)
        except SpecError as error:
            said = render.notice(in_words(error), "bad")
            return {**shown_cards(answer, where), "where_message": said}
        return {"device": device, "num_devices": len(places), "where_message": ""}

    def settings(self, where: str, begin: str = "") -> Updates:
        """Return the boxes that a place has use for. The name of each starts with `begin`."""
        engine = ENGINES.get(where)
        row, message = f"{begin}cluster_settings", f"{begin}where_message"
        if engine is None:
            return {row: gr.update(visible=False), message: ""}
        updates: Updates = {row: gr.update(visible=True)}
        for box, name in PLACE_BOXES.items():
            updates[begin + box] = gr.update(visible=name in engine.fields)
        # A cluster that the environment names needs no address, nor may guests give one.
        if where in self.found or is_restricted():
            updates[f"{begin}address"] = gr.update(visible=False)
        menu = [USUAL, *((name, name) for name in self.found.get(where, Found()).partitions)]
        updates[f"{begin}partition"] = gr.update(
            visible="partition" in engine.fields, choices=menu, value=""
        )
        about_card = "" if begin else CARD  # a resume has no choice of it
        said = " ".join(filter(None, (STORAGE, about_card, engine.trust)))
        return {**updates, message: render.notice(said, "plain")}

    def on_box(self, answer: Answer, where: str, **place: object) -> Updates:
        """Say the command that does the same."""
        if not answer.values:
            return {}
        return {"command": command_line(answer.values, chosen(where, place))}


def shown_cards(answer: Answer, where: str) -> Updates:
    """Return the ticks of the GPUs on which the job trains; hidden if there is one, or a cluster
    trains."""
    if len(machine.this_machine().gpus) < 2:
        return {}
    fields = {name: answer.values.get(name) for name in ("device", "num_devices")}
    places: tuple[int, ...] = ()
    with suppress(SpecError):
        job = JobSpec.parse({name: value for name, value in fields.items() if value is not None})
        places = machine.places_together(job.device, job.num_devices)
    is_here = where in ("", HERE)
    return {CARDS: gr.update(visible=is_here, value=[str(place) for place in places])}


def chosen(where: str, place: Mapping[str, object]) -> dict[str, str]:
    """Return what the boxes say, by the fields that the chosen cluster understands."""
    engine = ENGINES.get(where)
    if engine is None:
        return {"engine": where} if where not in ("", HERE) else {}
    found = {"engine": where}
    for box, name in PLACE_BOXES.items():
        value = place.get(box)
        text = "" if value is None else str(value).strip()
        if name in engine.fields and text:
            found[name] = text
    return found


def placement_of(where: str, place: Mapping[str, object]) -> Placement:
    """Return where a run shall train. Raises SpecError."""
    values = chosen(where, place)
    if not values:
        return Placement()
    placement = Placement.parse(values)
    if placement.address and is_restricted():
        # The server would speak to any address in its own name.
        fix = "have Tailor started with RAY_ADDRESS"
        problem = "those who came in by the token cannot name a cluster"
        raise SpecError(Problem("address", problem, fix))
    engine_of(placement)
    return placement


def _comparison(where: str) -> Updates:
    """Return what the comparison says of where its runs train."""
    engine = ENGINES.get(where)
    label = f"Send one run of each to {engine.title}" if engine else QUEUE_EACH
    return {"compare_methods": label, "sweep_at_once": gr.update(visible=engine is not None)}
