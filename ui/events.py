"""Wire page events to handlers: both know components by name. Knows no component and no handler."""

import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gradio as gr

Components = Mapping[str, Any]
"""Name -> component. Any, because Gradio adds the methods of events at run time."""
Updates = dict[str, object]
"""Component name -> new value or gr.update. Components that are left out stay as they are."""
Handler = Callable[..., Updates]
Repeat = Literal["once", "always_last"]
"""Drop an event that fires while its handler is running, or run the handler again for the last one."""


@dataclass(frozen=True)
class Wiring:
    """Connects events of components to handlers."""

    components: Components
    """Every component that a handler may update."""
    fields: Components
    """Those of them that hold the form."""

    def on(
        self,
        event: Callable[..., Any],
        handler: Handler,
        inputs: Components,
        *,
        queue: bool = False,
        repeat: Repeat = "once",
        outputs: Collection[str] = (),
    ) -> Any:
        """Call a handler with the values of its inputs, by name. Return what `.then` can be called on.

        Handlers that may take long use the queue; the others never wait behind them. Name the
        `outputs` of frequent events: every output costs the browser some work.
        """
        return event(
            fn=self._by_component(handler),
            inputs_kwargs=dict(inputs),
            outputs=[self.components[name] for name in outputs or self.components],
            api_name=_name_of(handler),
            trigger_mode=repeat,
            queue=queue,
            show_progress="hidden",
            show_progress_on=self.components["filled"],
            api_visibility="undocumented",
        )

    def on_fill(
        self, event: Callable[..., Any], handler: Handler, inputs: Components, queue: bool = False
    ) -> None:
        """Wire a handler that may put values into the form: `filled` changes when it did."""

        def fill(**values: object) -> Updates:
            updates = handler(**values)
            if updates.keys() & self.fields.keys():
                updates["filled"] = str(time.monotonic_ns())
            return updates

        fill.__name__ = _name_of(handler)
        self.on(event, fill, inputs, queue=queue)

    def _by_component(self, handler: Handler) -> Callable[..., object]:
        """Wrap a handler so that it returns {component: value}, as Gradio wants it."""

        def call(**inputs: object) -> object:
            try:
                updates = handler(**inputs)
            except Exception as error:  # nothing above this would tell the user
                traceback.print_exc()
                said = f"Internal error ({type(error).__name__}). The terminal shows the details."
                raise gr.Error(said) from error
            return {self.components[name]: value for name, value in updates.items()} or gr.skip()

        return call


def _name_of(handler: Handler) -> str:
    if isinstance(handler, partial):
        return _name_of(handler.func)
    return handler.__name__
