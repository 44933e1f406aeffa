"""Check what a browser sends: a handler gets values of the type of each component."""

import re
from collections.abc import Mapping

import gradio as gr

UNUSABLE = re.compile("[\x00\ud800-\udfff]")
"""Characters that no file name and no encoding has."""
MAX_WHOLE = 2**63
LARGEST = 10**300


def checked(inputs: Mapping[str, object], components: Mapping[str, object]) -> dict[str, object]:
    """Return the values of all inputs.

    A wrong type becomes what an empty control holds: no text, or None for a number.
    """
    return {name: _checked(components.get(name), value) for name, value in inputs.items()}


def sendable(value: int | float) -> int | float:
    """Return a number that can be sent back to the browser: whole ones have 64 bits at most."""
    if abs(value) < MAX_WHOLE:
        return value
    return float(max(-LARGEST, min(LARGEST, value)))


def _checked(component: object, value: object) -> object:
    if component is None or isinstance(component, gr.State):
        return value  # the server's own
    if isinstance(component, gr.Number):
        return sendable(value) if isinstance(value, int | float) else None
    if isinstance(component, gr.Checkbox):
        return value if isinstance(value, bool) else None
    if isinstance(component, gr.CheckboxGroup):
        chosen = value if isinstance(value, list) else ()
        return [each for each in chosen if isinstance(each, str)]
    # Everything else is a text.
    if isinstance(value, str):
        return UNUSABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return str(value) if isinstance(value, int | float) else ""
