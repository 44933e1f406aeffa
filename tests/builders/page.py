"""Page without a browser: the form of one open page, as a browser would keep it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.resolve import default_fields
from ui.handlers import FIRST_STATE, NO_ANSWER, Handlers, Suggestions, Undo

LLAMA = "meta-llama/Llama-3.1-8B"
Shown = dict[str, Any]
"""Component name -> value or update, as a handler returned it."""


def demo(**changes: object) -> dict[str, object]:
    """Return the form as the page shows it first, with some fields changed."""
    return {**default_fields("demo", "lora"), "model": "demo", "dataset": "demo", **changes}


def llama(method: str, **changes: object) -> dict[str, object]:
    """Return a form for an 8B model on a card of 24 GB, which full fine-tuning does not fit."""
    named = {"model": LLAMA, "method": method, "gpu": "rtx-4090", "dataset": "demo"}
    return {**default_fields(LLAMA, method), **named, **changes}


class FormPage:
    """Form of one open page: its values in the browser, and its states on the server.

    Every event sends values and states to a handler, and applies the updates that it returns.
    """

    def __init__(self, handlers: Handlers, form: Mapping[str, object] | None = None) -> None:
        self.handlers = handlers
        self.form = dict(form or demo())
        self.states: dict[str, Any] = {
            "form_state": replace(FIRST_STATE, values=dict(self.form)),
            "answer": NO_ANSWER,
            "suggestions": Suggestions(),
            "undo": Undo(),
            "open_panels": {},
            "wanted_trace": "",
        }

    def fire(self, handler: Callable[..., Shown], *inputs: str, **values: object) -> Shown:
        """Call a handler with these states and fields by name. Return what it shows."""
        known = {**self.form, **self.states}
        shown = handler(**{name: known[name] for name in inputs}, **values)
        self.receive(shown)
        return shown

    def receive(self, shown: Shown) -> None:
        """Take over new values of fields and states."""
        for name, update in shown.items():
            if name in self.states:
                self.states[name] = update
            elif name in self.form:
                value = update.get("value", self.form[name]) if isinstance(update, dict) else update
                self.form[name] = value

    def edit(self, **changes: object) -> Shown:
        """Change fields, or the place, and return what the page shows then."""
        self.form |= changes
        states = ("form_state", "answer", "suggestions", "undo", "wanted_trace")
        return self.fire(self.handlers.estimate.on_edit, *states, **self.form)

    def suggest(self) -> Shown:
        """Return the fixes for the last answer."""
        return self.fire(self.handlers.estimate.on_suggest, "answer", **self.form)

    def press_fix(self, place: int) -> Shown:
        """Press a fix, without the edit that follows."""
        on_fix = self.handlers.estimate.on_fix
        return self.fire(on_fix, "suggestions", **self.form, place=place)

    def start(self) -> Shown:
        """Press the start button."""
        return self.handlers.runs.on_start(**self.form)


def data_of(shown: Shown) -> Path:
    """Return the file that became the form's data."""
    return Path(shown["dataset"]["value"])


def looking_at(run_id: object = "", **boxes: str) -> dict[str, str]:
    """Return what the boxes of the Runs tab say."""
    return {"run_id": str(run_id), "compared": "", "run_search": "", **boxes}
