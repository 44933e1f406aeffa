"""Boxes that say where a run trains, for the start and for a resume. Layout only: reads nothing."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from core.runs.engines import HERE
from ui.form import PLACE_LABELS
from ui.parts import Parts

PLACE_BOXES: Mapping[str, str] = {
    "address": "address",
    "partition": "partition",
    "time_limit": "time",
    "gres": "gres",
    "account": "account",
    "nodes": "nodes",
}
"""Box of the page -> field of a placement."""
RESUME = "resume_"
"""Beginning of the names of the boxes of a resume."""
RESUME_BOXES = tuple(RESUME + box for box in PLACE_BOXES)
CARDS = "cards"
"""Boxes to tick the GPUs of this machine, which are a view of the fields device and num_devices."""
THIS_MACHINE = ("This machine", HERE)
USUAL = ("(usual)", "")


def place_boxes(parts: Parts, begin: str = "") -> None:
    """Place the choice of a cluster here, and what it may be asked for. An empty box leaves it to
    the cluster. Every name starts with `begin`."""
    parts.add(f"{begin}where", gr.Radio, [THIS_MACHINE], value=HERE, label=PLACE_LABELS["on"])
    row = {"elem_classes": "settings", "visible": False}
    with parts.add(f"{begin}cluster_settings", gr.Row, **row):
        _place_settings(parts, begin)
    parts.html(f"{begin}where_message")


def _place_settings(parts: Parts, begin: str) -> None:
    labels = {box: PLACE_LABELS[field] for box, field in PLACE_BOXES.items()}
    box: dict[str, Any] = {"max_lines": 1, "min_width": 140}
    menu = {"allow_custom_value": True, "min_width": 140}
    address = {**box, "placeholder": "http://127.0.0.1:8265", "elem_classes": "wide"}
    limit, gres = {**box, "placeholder": "12:00:00"}, {**box, "placeholder": "gpu:2"}
    whole = {"precision": 0, "minimum": 1, "min_width": 140}
    parts.add(f"{begin}address", gr.Textbox, label=labels["address"], **address)
    parts.add(
        f"{begin}partition", gr.Dropdown, [USUAL], value="", label=labels["partition"], **menu
    )
    parts.add(f"{begin}time_limit", gr.Textbox, label=labels["time_limit"], **limit)
    parts.add(f"{begin}gres", gr.Textbox, label=labels["gres"], **gres)
    parts.add(f"{begin}account", gr.Textbox, label=labels["account"], **box)
    parts.add(f"{begin}nodes", gr.Number, 1, label=labels["nodes"], **whole)
