"""Check what a browser sends, and what is sent to it, by the type of each component."""

import math
import re
from collections.abc import Mapping

import gradio as gr

UNUSABLE = re.compile("[\x00\ud800-\udfff]")
"""Characters that no file name and no encoding has."""
MAX_WHOLE = 2**63
LARGEST = 10**300
LARGEST_WHOLE = 2**53
"""Above it a browser does not tell a whole number from the next one."""


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


def showable(component: object, update: object) -> object:
    """Return a new value, or a gr.update with one, as a control can show it.

    A text loses what no encoding has, which a damaged file may hold, or the page gets no answer.
    Controls of whole numbers make an int of every number, which must fit into 64 bits.
    """
    if isinstance(update, str):
        return UNUSABLE.sub("\N{REPLACEMENT CHARACTER}", update)
    if not isinstance(component, gr.Number) or component.precision != 0:
        return update
    if isinstance(update, dict):
        return update | {"value": _whole(update["value"])} if "value" in update else update
    return _whole(update)


def _whole(value: object) -> object:
    if not isinstance(value, int | float):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    return max(-LARGEST_WHOLE, min(LARGEST_WHOLE, value))


def _number(component: gr.Number, value: int | float) -> int | float:
    if component.precision == 0 and abs(value) < MAX_WHOLE:
        return round(value)
    return sendable(value)


def _checked(component: object, value: object) -> object:
    if component is None or isinstance(component, gr.State):
        return value  # the server's own
    if isinstance(component, gr.Number):
        return _number(component, value) if isinstance(value, int | float) else None
    if isinstance(component, gr.Checkbox):
        return value if isinstance(value, bool) else None
    if isinstance(component, gr.CheckboxGroup):
        chosen = value if isinstance(value, list) else ()
        return [each for each in chosen if isinstance(each, str)]
    # Everything else is a text.
    if isinstance(value, str):
        return UNUSABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return str(value) if isinstance(value, int | float) else ""
