"""Layout of the start: where a run trains, the button, and reasons against it. Reads nothing."""

from typing import Any

import gradio as gr

from core.runs.engines import HERE
from ui import form
from ui.events import Wiring
from ui.handlers import Handlers
from ui.parts import Parts
from ui.place_boxes import CARDS, PLACE_BOXES, RESUME, RESUME_BOXES, place_boxes

SAY_THAT_IT_ASKS = f"""where => !where || where === "{HERE}" ? "" :
    '<p class="notice plain">Asking the cluster ...</p>'"""
"""Script for the message below the start: a cluster may take seconds to answer."""
WHERE_PARTS = (
    "where",
    "where_message",
    "cluster_settings",
    CARDS,
    "command",
    "start_message",
    *PLACE_BOXES,
)
COMPARE_PARTS = ("compare_methods", "sweep_at_once")
"""Parts of the comparison that say where its runs train."""
RESUME_PARTS = (f"{RESUME}where_message", f"{RESUME}cluster_settings", *RESUME_BOXES)


def place_start(parts: Parts) -> None:
    """Place the choice of a cluster and the start button."""
    place_boxes(parts)
    cards = form.card_choices()
    parts.add(CARDS, gr.CheckboxGroup, cards, label="GPUs", visible=len(cards) > 1)
    parts.button("start", "Start training", variant="primary", size="lg")
    parts.html("start_facts")
    parts.html("start_message")


def wire_start(wiring: Wiring, handlers: Handlers, load: Any) -> None:
    """Wire the start. Clusters are looked for after the page has come up: one may be slow."""
    on, parts = wiring.on, wiring.components
    on(
        load,
        handlers.placing.on_look_for_clusters,
        queue=True,
        outputs=(*WHERE_PARTS, *COMPARE_PARTS),
    )
    on(parts["where"].input, handlers.placing.on_where, outputs=(*WHERE_PARTS, *COMPARE_PARTS))
    on(parts[CARDS].input, handlers.placing.on_cards, fills=True)
    for name in PLACE_BOXES:
        boxes = parts[name].input
        on(boxes, handlers.placing.on_box, repeat="always_last", outputs=("command",))
    wiring.on_browser(parts["start"].click, SAY_THAT_IT_ASKS, ("where",), ("start_message",))
    on(parts["start"].click, handlers.runs.on_start, queue=True)


def wire_resume(wiring: Wiring, handlers: Handlers) -> None:
    """Wire the resume on other devices, or at another place."""
    on, parts, resuming = wiring.on, wiring.components, handlers.resuming
    on(parts[f"{RESUME}where"].input, resuming.on_resume_where, outputs=RESUME_PARTS)
    press, chosen = parts["resume_there"].click, f"{RESUME}where"
    wiring.on_browser(press, SAY_THAT_IT_ASKS, (chosen,), ("run_message",))
    on(press, resuming.on_resume_there, queue=True)
