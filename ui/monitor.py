"""The run panel: the picker, the plots and the rest of one run. Places components and names them; reads nothing."""

from typing import Any

import gradio as gr

from ui.render.plots import PLOTS, figure

ALWAYS_SHOWN = ("loss", "memory")


def render() -> dict[str, Any]:
    """Places the run panel where the page stands now: {name: component}."""
    named: dict[str, Any] = {}
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=3, min_width=300, elem_classes="runs-list"):
            named["run_id"] = gr.Radio(choices=[], label="Runs", elem_id="run-picker")
        with gr.Column(scale=8, min_width=320):
            named["run_header"] = gr.HTML(elem_id="run-header")
            with gr.Row(elem_classes="actions"):
                named["stop"] = gr.Button("Stop and save", variant="stop", size="sm", visible=False, elem_id="stop")
                named["resume"] = gr.Button("Resume", size="sm", visible=False, elem_id="resume")
                named["reuse"] = gr.Button("Use these settings", size="sm", visible=False, elem_id="reuse")
            named["figures"] = gr.Textbox(visible="hidden", elem_id="figures")
            named["tiles"] = gr.HTML(elem_id="tiles")
            for name in ALWAYS_SHOWN:
                _place_plot(name)
            named["what_next"] = gr.HTML(elem_id="what-next")
            named["memory_table"] = gr.HTML(elem_id="memory-table")
            named["answers"] = gr.HTML(elem_id="answers")
            with gr.Accordion("More plots", open=False):
                for name in PLOTS:
                    if name not in ALWAYS_SHOWN:
                        _place_plot(name)
            with gr.Accordion("Log", open=False):
                named["log"] = gr.Textbox(lines=14, max_lines=14, show_label=False, elem_id="log", interactive=False)
    return named


def _place_plot(name: str) -> None:
    """A plot without points; ui/plots.js draws the figures into it."""
    gr.Plot(figure(PLOTS[name], None), show_label=False, elem_id=f"plot-{name}", container=False)
