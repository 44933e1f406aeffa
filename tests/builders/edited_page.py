"""Served page without a browser: sends what a browser would send, as fast as the page answers."""

import json
from typing import Any

import httpx

from tests.builders.browser import App

EDIT = ("on_edit", "on_lengths", "on_start_facts", "on_suggest", "on_redraw_panels")
"""Handlers that follow an edit."""


class EditedPage:
    """Page of a running app, which many tabs may have open."""

    def __init__(self, app: App, token: str = "") -> None:
        self._client = httpx.Client(base_url=app.url, timeout=120, follow_redirects=True)
        if token:
            self._client.get("/", params={"token": token})
        config = self._client.get("config").json()
        self._components = {each["id"]: each for each in config["components"]}
        self._events: dict[str, dict[str, Any]] = {}
        for event in config["dependencies"]:
            self._events.setdefault(event["api_name"], event)

    def load(self, tab: str) -> None:
        """Open the page in a tab, and close it."""
        self.fire("on_load", tab)
        self.edit(tab)
        with self._client.stream("GET", f"gradio_api/heartbeat/{tab}") as alive:
            next(alive.iter_raw())

    def edit(self, tab: str, **fields: object) -> None:
        """Send a form in which some fields have other values."""
        for name in EDIT:
            self.fire(name, tab, **fields)

    def fire(self, name: str, tab: str, **fields: object) -> dict[str, Any]:
        """Call a handler. Return what it updates, by the name of the component."""
        event = self._events[name]
        data = [self._value(self._components[each], fields) for each in event["inputs"]]
        sent = {"data": data, "fn_index": event["id"], "session_hash": tab}
        if event["queue"]:
            values = self._wait_in_queue(sent)
        else:
            answer = self._client.post("gradio_api/run/predict", json=sent)
            values = answer.raise_for_status().json()["data"]
        names = [_name(self._components[each]) for each in event["outputs"]]
        return dict(zip(names, values, strict=True))

    def _wait_in_queue(self, sent: dict[str, Any]) -> list[Any]:
        """Send an event that is queued. Return the values of its outputs."""
        self._client.post("gradio_api/queue/join", json=sent).raise_for_status()
        tab = {"session_hash": sent["session_hash"]}
        with self._client.stream("GET", "gradio_api/queue/data", params=tab) as messages:
            for line in messages.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") == "process_completed":
                    return list(message["output"]["data"])
        raise AssertionError("the queue gave no answer")

    def _value(self, component: dict[str, Any], fields: dict[str, object]) -> object:
        if component["type"] == "state":
            return None
        return fields.get(_name(component), component["props"].get("value"))


def _name(component: dict[str, Any]) -> str:
    """Return the name of a component, as handlers know it."""
    id = component["props"].get("elem_id") or ""
    return str(id).removeprefix("field-").replace("-", "_")
