"""Layout of the panel that compares methods and settings before the start. Reads nothing."""

from functools import partial

import gradio as gr

from core.after_training.compare.record import AT_ONCE_ON_A_CLUSTER, MOST_AT_ONCE
from core.training.contract.methods import METHODS
from ui.events import Wiring
from ui.handlers import FIRST_SWEEP, QUEUE_EACH, Handlers, panels
from ui.parts import Parts

EXAMPLE = "learning_rate = 1e-4, 2e-4\nlora_r = 8, 32"
SWEEP_NUMBERS = ("sweep_seeds", "sweep_tried", "sweep_at_once")
SWEEP_OUTPUTS = ("sweep", "compare", "open_panels")


def place_compare(parts: Parts) -> None:
    """Place the panel here: what varies, the estimates side by side, and the button."""
    parts.state("sweep", FIRST_SWEEP)
    with parts.add("compare_panel", gr.Accordion, "Compare methods and settings", open=False):
        choices = [(method.title, name) for name, method in METHODS.items()]
        parts.add(
            "sweep_methods",
            gr.CheckboxGroup,
            choices,
            value=list(FIRST_SWEEP.methods),
            label="Methods",
        )
        parts.add(
            "sweep_lines",
            gr.Textbox,
            label="Also vary, one setting a line",
            info="A range such as learning_rate = 1e-5..1e-3 is for Optuna.",
            placeholder=EXAMPLE,
            lines=2,
        )
        with gr.Row(elem_classes="settings"):
            whole = {"precision": 0, "min_width": 140}
            parts.add("sweep_seeds", gr.Number, 1, label="Seeds of each", minimum=1, **whole)
            label = "Runs of Optuna (0: none)"
            parts.add("sweep_tried", gr.Number, 0, label=label, minimum=0, **whole)
            label = "At once on a cluster"
            hidden = {"visible": False, "maximum": MOST_AT_ONCE}
            usual = AT_ONCE_ON_A_CLUSTER
            parts.add("sweep_at_once", gr.Number, usual, label=label, minimum=1, **hidden, **whole)
        parts.html("compare", "Computing ...")
        parts.button("compare_methods", QUEUE_EACH, variant="primary")
        parts.html("compare_message")


def wire_compare(wiring: Wiring, handlers: Handlers) -> None:
    """Wire what varies, which is drawn again, and the button."""
    parts = wiring.components
    on = partial(wiring.on, repeat="always_last", outputs=SWEEP_OUTPUTS)
    changes = [parts[name].input for name in ("sweep_methods", *SWEEP_NUMBERS)]
    on(partial(gr.on, [*changes, parts["sweep_lines"].blur]), panels.on_sweep)
    wiring.on(parts["compare_methods"].click, handlers.comparing.on_compare, queue=True)
