"""Wire page events to handlers: both know components by name. Knows no handler."""

import inspect
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.context import LocalContext

from core.job import TailorError
from core.job.places import ALL_FOLDERS, only_in
from ui import render
from ui.gate.accounts import is_guest
from ui.inputs import checked, showable

Components = Mapping[str, Any]
"""Name -> component. Any, because Gradio adds the methods of events at run time."""
Updates = dict[str, object]
"""Component name -> new value or gr.update. Components that are left out stay as they are."""
Handler = Callable[..., Updates]
Repeat = Literal["once", "always_last"]
"""If an event fires while its handler runs: ignore it, or run the handler again afterwards."""


MESSAGE = "page_message"
"""Component that says why an event could not be handled."""
INTERNAL_ERROR = "Something went wrong in Tailor itself. The terminal shows the details."


@dataclass(frozen=True)
class Wiring:
    """Connects events to handlers, whose parameters are the names of their inputs."""

    components: Components
    """Every component that a handler may read or update."""
    groups: Mapping[str, Components]
    """Name of a handler's parameter -> the components behind it, which a `**parameter` takes one by
    one and any other as a mapping. `form` holds the fields."""
    guest_folders: Sequence[Path] = ()
    """Folders that jobs may name files in, for those who came in by the token."""

    def on(
        self,
        event: Callable[..., Any],
        handler: Handler,
        *,
        queue: bool = False,
        repeat: Repeat = "once",
        outputs: Collection[str] = (),
        fills: bool = False,
        js: str | None = None,
    ) -> Any:
        """Call a handler at an event. Return what `.then` can be called on.

        Handlers that may take long use the queue; the others never wait behind them. Name the
        `outputs` of frequent events: every output costs the browser some work. A handler that
        `fills` the form changes `filled` as well, which an edit follows. `js` replaces the inputs.
        """
        inputs = self._inputs(handler)
        has_file = any(isinstance(part, gr.File) for part in inputs.values())
        return event(
            fn=self._by_component(handler, fills),
            inputs_kwargs=inputs,
            # Gradio's own check fails for a choice that its menu lacks, before any handler is
            # called. Only a file needs it; everything else is checked by `checked`.
            preprocess=has_file,
            outputs=[self.components[name] for name in self._outputs(outputs)],
            api_name=_name_of(handler),
            trigger_mode=repeat,
            queue=queue,
            js=js,
            show_progress="hidden",
            show_progress_on=self.components["filled"],
            api_visibility="undocumented",
        )

    def on_browser(
        self,
        event: Callable[..., Any],
        js: str,
        inputs: Collection[str],
        outputs: Collection[str] = (),
    ) -> Any:
        """Call a script at an event with the values of some components, without the server.

        It returns the values of `outputs`.
        """
        return event(
            fn=None,
            inputs=[self.components[name] for name in inputs],
            outputs=[self.components[name] for name in outputs],
            js=js,
            show_progress="hidden",
            api_visibility="private",
        )

    def _outputs(self, named: Collection[str]) -> Collection[str]:
        """Return the components that a handler may update; all if none are named."""
        if not named:
            return self.components.keys()
        return tuple(dict.fromkeys((*named, MESSAGE)))

    def _inputs(self, handler: Handler) -> dict[str, Any]:
        """Return the components that the parameters of a handler name: one, or a group."""
        inputs: dict[str, Any] = {}
        for name, parameter in inspect.signature(handler).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD or name in self.groups:
                inputs |= self.groups[name]
            else:
                inputs[name] = self.components[name]
        return inputs

    def _by_component(self, handler: Handler, fills: bool) -> Callable[..., object]:
        """Wrap a handler so that it returns {component: value}, as Gradio wants it."""
        groups = {name: self.groups[name] for name in _names_of_mappings(handler) & {*self.groups}}

        def call(**inputs: object) -> object:
            sent = checked(inputs, self.components)
            for group, parts in groups.items():
                sent[group] = {name: sent.pop(name) for name in parts}
            with only_in(self.guest_folders if _is_for_guest() else ALL_FOLDERS):
                updates = _call(handler, sent)
            if fills and updates.keys() & self.groups["form"].keys():
                updates = {**updates, "filled": str(time.monotonic_ns())}
            shown = {}
            for name, update in updates.items():
                part = self.components[name]
                shown[part] = showable(part, update)
            return shown or gr.skip()

        return call


def _call(handler: Handler, inputs: Mapping[str, object]) -> Updates:
    """Return what a handler updates, or a message if it fails."""
    try:
        return handler(**inputs)
    except TailorError as error:
        said = " ".join(map(render.sentences, error.problems))
    except OSError as error:
        said = error.strerror or "A file could not be read or written"
        if error.filename:
            said += f": {error.filename}"
    except Exception:  # nothing above this would tell the user
        traceback.print_exc()
        said = INTERNAL_ERROR
    return {MESSAGE: f'<div role="alert">{render.notice(said, "bad")}</div>'}


def _names_of_mappings(handler: Handler) -> set[str]:
    """Return the parameters of a handler that are no `**parameter`."""
    parameters = inspect.signature(handler).parameters.values()
    return {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}


def _is_for_guest() -> bool:
    """Return whether the event that is handled may come from another account of this machine."""
    request = LocalContext.request.get(None)
    return request is None or is_guest(request.headers)


def _name_of(handler: Handler) -> str:
    if isinstance(handler, partial):
        return _name_of(handler.func)
    return handler.__name__
