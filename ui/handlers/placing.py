"""Choose where a run trains: this machine, or a cluster that it sees. Sends nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import gradio as gr

from core.job import Problem, SpecError
from core.job.places import is_restricted
from core.runs.engines import ENGINES, HERE, Found, Placement, engine_of, found_engines
from ui import render
from ui.events import Updates
from ui.handlers.answer import Answer
from ui.handlers.command import command_line

USUAL = ("(usual)", "")
PLACE_BOXES: Mapping[str, str] = {
    "address": "address",
    "partition": "partition",
    "time_limit": "time",
    "gres": "gres",
    "account": "account",
    "nodes": "nodes",
}
"""Box of the page -> field of a placement."""
NOTHING_ASKED: Mapping[str, object] = MappingProxyType({})
"""Boxes of a page on which no cluster is chosen."""
NOTE = (
    "The run folder must lie on storage that the nodes see. The estimate is for the card chosen as "
    "GPU: choose that of the cluster."
)
QUEUE_EACH = "Queue one run of each"
"""Button of the comparison, where it trains on this machine."""
ALWAYS_OFFERED = "ray"
"""Engine whose cluster a user may name on the page."""


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
        offered = [name for name in ENGINES if name in self.found or name == ALWAYS_OFFERED]
        choices = [("This machine", HERE)]
        choices += [(f"My cluster ({ENGINES[name].title})", name) for name in offered]
        return {**_hide(), "where": gr.update(choices=choices, value=HERE)}

    def on_where(self, answer: Answer, where: str, **place: object) -> Updates:
        """Ask for what the chosen cluster has to know."""
        engine = ENGINES.get(where)
        if engine is None:
            return {**_hide(), **self.on_box(answer, where)}
        send = f"Send one run of each to {engine.title}"
        found = self.found.get(where, Found())
        menu = [USUAL, *((name, name) for name in found.partitions)]
        updates: Updates = {"cluster_settings": gr.update(visible=True)}
        updates |= {"compare_methods": send, "sweep_at_once": gr.update(visible=True)}
        for box, name in PLACE_BOXES.items():
            updates[box] = gr.update(visible=name in engine.fields)
        # A cluster that the environment names needs no address, nor may guests give one.
        if where in self.found or is_restricted():
            updates["address"] = gr.update(visible=False)
        updates["partition"] = gr.update(
            visible="partition" in engine.fields, choices=menu, value=""
        )
        said = " ".join(filter(None, (NOTE, engine.trust)))
        shown = {**place, "partition": ""}
        return {
            **updates,
            **self.on_box(answer, where, **shown),
            "where_message": render.notice(said, "plain"),
        }

    def on_box(self, answer: Answer, where: str, **place: object) -> Updates:
        """Say the command that does the same."""
        if not answer.values:
            return {}
        return {"command": command_line(answer.values, chosen(where, place))}


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


def _hide() -> Updates:
    return {
        "cluster_settings": gr.update(visible=False),
        "where_message": "",
        "compare_methods": QUEUE_EACH,
        "sweep_at_once": gr.update(visible=False),
    }
