"""Named components of the page. Each gets its name as element id, for styles and tests."""

from collections.abc import Sequence
from typing import Any

import gradio as gr


class Parts:
    """Builds components where the page stands now, and keeps them by name."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def add(self, name: str, kind: Any, *values: object, **options: Any) -> Any:
        """Build a component of a Gradio class. Return it, to be entered if it is a container."""
        self.named[name] = kind(*values, elem_id=name.replace("_", "-"), **options)
        return self.named[name]

    def button(self, name: str, label: str = "", **options: Any) -> None:
        """Build a small button. One without a label is hidden until a handler gives it one."""
        self.add(name, gr.Button, label, **{"size": "sm", "visible": bool(label), **options})

    def html(self, name: str, value: str = "") -> None:
        """Build a place for HTML."""
        self.add(name, gr.HTML, value)

    def signal(self, name: str) -> None:
        """Build a text box that no user sees. Scripts and events react to a new text in it.

        A `gr.State` would not do: handlers outside the queue do not tell the browser that it
        changed.
        """
        self.add(name, gr.Textbox, visible="hidden")

    def state(self, name: str, value: object) -> None:
        """Build a value that stays on the server, one for each open page."""
        self.named[name] = gr.State(value)

    def timer(self, name: str, seconds: float) -> None:
        """Build a timer that a handler starts and stops."""
        self.named[name] = gr.Timer(seconds, active=False)


def show_buttons(names: Sequence[str], labels: Sequence[str]) -> dict[str, object]:
    """Return updates that give these labels to the first buttons and hide the others."""
    updates: dict[str, object] = {name: gr.update(visible=False) for name in names}
    for name, label in zip(names, labels, strict=False):
        updates[name] = gr.update(visible=True, interactive=True, value=label)
    return updates
