"""Layout of the panel that takes a result to other programs. Reads nothing."""

from collections.abc import Mapping

import gradio as gr

from core.after_training.export.forms import DEFAULT_QUANT, QUANTS
from core.after_training.export.tools import DOWNLOAD
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
INSTALL = f"Install the converters ({DOWNLOAD})"
BASES = (("As it trained", "trained"), ("16-bit base", "original"), ("Measure both", "both"))
MATRIX_HINT = "Of rows of the training: what they use is rounded least. Not for 16 bits, Q8_0."
ROWS_HINT = (
    "Off: the rows of the training stay here. On: everybody who sees the repository can read them."
)
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
        with gr.Row(elem_classes="actions"):
            parts.button("install_tools", INSTALL, visible=False)
        with gr.Row(elem_classes="settings"):
            quants = list(QUANTS)
            parts.add(
                "export_quant", gr.Dropdown, quants, value=DEFAULT_QUANT, label="GGUF precision"
            )
            parts.add("export_matrix", gr.Checkbox, label="Importance matrix", info=MATRIX_HINT)
            parts.add("export_base", gr.Radio, BASES, value="trained", label="Base to merge into")
        with gr.Row(elem_classes="actions"):
            parts.button("add_to_ollama", "Add to this machine's Ollama", visible=False)
            parts.button("stop_export", "Stop", variant="stop", visible=False)
        parts.html("export_status")
        parts.html("exports")
        with parts.add("check_exports", gr.Column, visible=False):
            with gr.Row(elem_classes="settings"):
                hint = "The newest, unless you choose. Asks the suites that are chosen under Check."
                parts.add("checked_export", gr.Dropdown, [], label="Export to check", info=hint)
            with gr.Row(elem_classes="actions"):
                parts.button("check_export", "Check what it cost")
        with gr.Accordion("Publish on the Hub", open=False):
            _place_publish(parts)
    parts.timer("export_timer", SECONDS_BETWEEN_LOOKS)


def _place_publish(parts: Parts) -> None:
    """Place what an upload needs. The token goes to the worker through a pipe, and nowhere else."""
    parts.html("publish_tile")
    with gr.Row():
        parts.add("export_repo", gr.Textbox, label="Repository", placeholder="owner/name")
        parts.add("export_token", gr.Textbox, label="Token", type="password")
    with gr.Row(elem_classes="settings"):
        parts.add("export_private", gr.Checkbox, True, label="Private")
        parts.add("export_rows", gr.Checkbox, False, label="Send the rows too", info=ROWS_HINT)
    hint = "Empty: written from what the run knows. Yours is kept, and sent in its place."
    parts.add("export_card", gr.Textbox, label="Model card", info=hint, lines=4)
    with gr.Row(elem_classes="actions"):
        parts.button("show_card", "Write the card from the run")
        parts.button("publish", "Publish", variant="primary")
