"""Layout of the Try tab: two models, their answers side by side, and what to keep of them."""

from functools import partial
from typing import TYPE_CHECKING

import gradio as gr

from core.after_training.chat import AnswerSettings
from ui.events import Wiring
from ui.parts import Parts
from ui.render.conversation import EMPTY

if TYPE_CHECKING:
    from ui.handlers import Handlers

SECONDS_BETWEEN_PIECES = 0.3
SIDES = ("left", "right")
SETTINGS = (
    "try_left",
    "try_right",
    "try_system",
    "try_temperature",
    "try_top_p",
    "try_max_tokens",
    "try_seed",
)
"""What a message is asked with."""
PARTS = (
    "try_id",
    "try_message",
    "try_timer",
    "try_log",
    "try_status",
    "try_send",
    "try_stop",
    "try_new",
    "try_edit",
    "try_keep",
    "try_keep_preference",
    *(f"try_prefer_{side}" for side in SIDES),
    *(f"try_correct_{side}" for side in SIDES),
)


def place_try(parts: Parts) -> None:
    """Place the Try tab here."""
    parts.state("try_id", "")
    parts.timer("try_timer", SECONDS_BETWEEN_PIECES)
    with gr.Row(elem_classes="try-menus"):
        menu = {"allow_custom_value": True, "filterable": True}
        info = "A run, its checkpoint or exported GGUF, or a model's name or folder"
        parts.add("try_left", gr.Dropdown, [], label="Left", info=info, **menu)
        parts.add("try_right", gr.Dropdown, [], label="Right", info=info, **menu)
    parts.html("try_log", EMPTY)
    parts.html("try_status")
    with gr.Row(elem_classes="try-ask"):
        hint = "Message (Enter sends it)"
        bare = {"show_label": False, "container": False}
        box = {"lines": 1, "max_lines": 8, "placeholder": hint, "label": "Message"}
        parts.add("try_message", gr.Textbox, **box, **bare)
        parts.button("try_send", "Send", variant="primary", min_width=80)
        parts.button("try_stop", "Stop", variant="stop", visible=False, min_width=80)
    with gr.Row(elem_classes="actions"):
        parts.button("try_prefer_left", "Left is better", visible=False)
        parts.button("try_prefer_right", "Right is better", visible=False)
        parts.button("try_correct_left", "Correct left", visible=False)
        parts.button("try_correct_right", "Correct the answer", visible=False)
        parts.button("try_new", "New conversation", visible=False)
    label = "What the answer should be"
    parts.add("try_edit", gr.Textbox, label=label, lines=3, visible=False)
    with gr.Row(elem_classes="actions"):
        parts.button("try_keep", "Keep as a training row", visible=False)
        parts.button("try_keep_preference", "Keep as better than the answer", visible=False)
    with gr.Accordion("Settings of answers", open=False):
        parts.add("try_system", gr.Textbox, label="System prompt", lines=2)
        usual = AnswerSettings()
        with gr.Row(elem_classes="settings"):
            parts.add("try_temperature", gr.Number, usual.temperature, label="Temperature")
            parts.add("try_top_p", gr.Number, usual.top_p, label="Top-p")
            parts.add(
                "try_max_tokens", gr.Number, usual.max_tokens, label="Longest answer (tokens)"
            )
            parts.add("try_seed", gr.Number, usual.seed, label="Seed")


def wire_try(wiring: Wiring, handlers: "Handlers") -> None:
    """Wire the Try tab, and the button of a run that leads to it."""
    parts, tries = wiring.components, handlers.tries
    on = partial(wiring.on, outputs=PARTS)
    menus = ("try_left", "try_right", "tabs")
    wiring.on(parts["try_tab"].select, tries.on_try_open, outputs=menus)
    wiring.on(parts["try_run"].click, tries.on_try_run, outputs=(*menus, "run_message"))
    on(parts["try_message"].submit, tries.on_try_send)
    on(parts["try_send"].click, tries.on_try_send)
    on(parts["try_timer"].tick, tries.on_try_tick)
    on(parts["try_stop"].click, tries.on_try_stop)
    on(parts["try_new"].click, tries.on_try_new)
    on(parts["try_keep"].click, tries.on_try_keep)
    on(parts["try_keep_preference"].click, tries.on_try_keep_preference)
    for place, side in enumerate(SIDES):
        on(parts[f"try_prefer_{side}"].click, partial(tries.on_try_prefer, place))
    on(parts["try_correct_left"].click, partial(tries.on_try_correct, 0))
    on(parts["try_correct_right"].click, partial(tries.on_try_correct, -1))
