"""Layout of the start: where a run trains, the button, and reasons against it. Reads nothing."""

from typing import Any

import gradio as gr

from core.runs.engines import HERE
from ui.events import Wiring
from ui.form import PLACE_LABELS
from ui.handlers import PLACE_BOXES, Handlers
from ui.parts import Parts

THIS_MACHINE = ("This machine", HERE)
SAY_THAT_IT_ASKS = f"""where => !where || where === "{HERE}" ? "" :
    '<p class="notice plain">Asking the cluster ...</p>'"""
"""Script for the message below the start: a cluster may take seconds to answer."""
WHERE_PARTS = ("where", "where_message", "cluster_settings", "command", *PLACE_BOXES)
COMPARE_PARTS = ("compare_methods", "sweep_at_once")
"""Parts of the comparison that say where its runs train."""


def place_start(parts: Parts) -> None:
    """Place the choice of a cluster and the start button."""
    parts.add("where", gr.Radio, [THIS_MACHINE], value=HERE, label=PLACE_LABELS["on"])
    with parts.add("cluster_settings", gr.Row, elem_classes="settings", visible=False):
        _place_cluster_settings(parts)
    parts.html("where_message")
    parts.button("start", "Start training", variant="primary", size="lg")
    parts.html("start_facts")
    parts.html("start_message")


def _place_cluster_settings(parts: Parts) -> None:
    """Place what a cluster may be asked for. An empty box leaves it to the cluster."""
    box: dict[str, Any] = {"max_lines": 1, "min_width": 140}
    menu = {"allow_custom_value": True, "min_width": 140}
    address = {**box, "placeholder": "http://127.0.0.1:8265", "elem_classes": "wide"}
    parts.add("address", gr.Textbox, label=PLACE_LABELS["address"], **address)
    parts.add(
        "partition",
        gr.Dropdown,
        [("(usual)", "")],
        value="",
        label=PLACE_LABELS["partition"],
        **menu,
    )
    parts.add("time_limit", gr.Textbox, label=PLACE_LABELS["time"], placeholder="12:00:00", **box)
    parts.add("gres", gr.Textbox, label=PLACE_LABELS["gres"], placeholder="gpu:2", **box)
    parts.add("account", gr.Textbox, label=PLACE_LABELS["account"], **box)
    parts.add(
        "nodes", gr.Number, 1, label=PLACE_LABELS["nodes"], precision=0, minimum=1, min_width=140
    )


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
    for name in PLACE_BOXES:
        boxes = parts[name].input
        on(boxes, handlers.placing.on_box, repeat="always_last", outputs=("command",))
    wiring.on_browser(parts["start"].click, SAY_THAT_IT_ASKS, ("where",), ("start_message",))
    on(parts["start"].click, handlers.runs.on_start, queue=True)
