"""How an event of the page reaches its handler: both know the components by name. Knows no component and no handler."""

import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from ui.handlers import Shown

Named = Mapping[str, Any]
"""{name: component}. Any, because Gradio gives components their events only at run time."""
Handler = Callable[..., Shown]
Overtaken = Literal["once", "always_last"]
"""What becomes of an event that comes while another of its kind is under way: it is left out, or the last one follows.
"""


@dataclass(frozen=True)
class Joiner:
    """Joins events to handlers."""

    named: Named
    """Every component that a handler may speak of."""
    fields: Named
    """Those of them that hold the form."""

    def on(
        self,
        event: Callable[..., Any],
        handler: Handler,
        inputs: Named,
        *,
        quick: bool = True,
        overtaken: Overtaken = "once",
        shows: Collection[str] = (),
    ) -> Any:
        """The handler is called with the inputs' values; `quick` ones bypass the queue, so that no waiting work holds
        them up. It may speak of what it `shows`, or of all: for each of these a browser has some work to do. Returns
        what `.then` can be called on."""
        return event(
            fn=self._by_component(handler),
            inputs_kwargs=dict(inputs),
            outputs=[self.named[name] for name in shows or self.named],
            api_name=getattr(handler, "func", handler).__name__,
            trigger_mode=overtaken,
            queue=not quick,
            show_progress="hidden",
            show_progress_on=self.named["filled"],
            api_visibility="undocumented",
        )

    def fill(
        self, event: Callable[..., Any], handler: Handler, inputs: Named, quick: bool = True
    ) -> None:
        """The same for a handler that may put values into the form: `filled` changes when it did."""

        def noting(**values: object) -> Shown:
            shown = handler(**values)
            return (
                {**shown, "filled": str(time.monotonic_ns())}
                if shown.keys() & self.fields.keys()
                else shown
            )

        noting.__name__ = getattr(handler, "func", handler).__name__
        self.on(event, noting, inputs, quick=quick)

    def _by_component(self, handler: Handler) -> Callable[..., object]:
        """A handler's {name: value} as the {component: value} that Gradio wants; nothing said is nothing changed."""

        def joined(**inputs: object) -> object:
            try:
                shown = handler(**inputs)
            except Exception as error:  # the last resort of the page: the trace for the log, a sentence for the person
                traceback.print_exc()
                raise gr.Error(
                    f"{type(error).__name__} in Tailor itself. The terminal has the details."
                ) from error
            return {self.named[name]: value for name, value in shown.items()} or gr.skip()

        return joined
