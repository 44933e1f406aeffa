"""Layout of the panel that checks what a run has learnt and lost. Reads nothing."""

import gradio as gr

from ui.parts import Parts

SECONDS_BETWEEN_LOOKS = 1.0
CHECK_PARTS = (
    "check_panel",
    "check_timer",
    "suites_chosen",
    "check_what",
    "run_check",
    "stop_check",
    "check_status",
    "check_results",
    "identity_status",
)


def place_checks(parts: Parts) -> None:
    """Place the panel here: the suites, what is under way, and what was lost and gained."""
    with parts.add("check_panel", gr.Column, visible=False):
        gr.HTML("<h3>Check</h3>")
        parts.add("suites_chosen", gr.CheckboxGroup, [], label="Suites to ask", value=[])
        parts.add("check_what", gr.Dropdown, [], label="What answers after the training")
        with gr.Row(elem_classes="actions"):
            parts.button("run_check", "Check before and after", variant="primary")
            parts.button("stop_check", "Stop the check", variant="stop", visible=False)
        parts.html("check_status")
        parts.html("check_results")
        with gr.Accordion("Make a suite for this run", open=False):
            parts.add("identity_name", gr.Textbox, label="What is it called?", max_lines=1)
            parts.add("identity_maker", gr.Textbox, label="Who made it?", max_lines=1)
            parts.add("identity_purpose", gr.Textbox, label="What does it do?", max_lines=1)
            with gr.Row(elem_classes="actions"):
                parts.button("make_identity", "Make 100 questions")
                parts.button("make_held_out", "Use the held-out rows")
            parts.html("identity_status")
    parts.timer("check_timer", SECONDS_BETWEEN_LOOKS)
