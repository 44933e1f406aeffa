"""Layout of the panel that takes a result to other programs. Reads nothing."""

from collections.abc import Mapping

import gradio as gr

from core.export.forms import DEFAULT_QUANT, QUANTS
from ui.parts import Parts

EXPORT_TILES: Mapping[str, str] = {
    "merged": "export_merged_tile",
    "ollama": "export_ollama_tile",
    "gguf": "export_gguf_tile",
}
"""Form of an export -> place of its text."""
EXPORT_BUTTONS: Mapping[str, str] = {
    "merged": "export_merged",
    "ollama": "export_ollama",
    "gguf": "export_gguf",
}
"""Form of an export -> its button."""
LABELS: Mapping[str, str] = {
    "merged": "Merge into a folder",
    "ollama": "Make it for Ollama",
    "gguf": "Make a GGUF file",
}
BASES = (("As it trained", "trained"), ("16-bit base", "original"))
SECONDS_BETWEEN_LOOKS = 1.0


def place_exports(parts: Parts) -> None:
    """Place the panel here: a tile for each form, then what is under way and what is there."""
    with parts.add("take_panel", gr.Column, visible=False):
        gr.HTML("<h3>Take it with you</h3>")
        with gr.Row(elem_classes="export-tiles"):
            for form, place in EXPORT_TILES.items():
                with gr.Column(min_width=200):
                    parts.html(place)
                    parts.button(EXPORT_BUTTONS[form], LABELS[form], variant="primary")
        with gr.Row(elem_classes="settings"):
            quants = list(QUANTS)
            parts.add("export_quant", gr.Dropdown, quants, value=DEFAULT_QUANT, label="Numbers")
            parts.add("export_base", gr.Radio, BASES, value="trained", label="Base to merge into")
        with gr.Row(elem_classes="actions"):
            parts.button("install_tools", "Install the converters (52 MB)", visible=False)
            parts.button("stop_export", "Stop the export", variant="stop", visible=False)
        parts.html("export_status")
        parts.html("exports")
    parts.timer("export_timer", SECONDS_BETWEEN_LOOKS)
