"""Served page without a browser: sends what a browser would send, as fast as the page answers."""

from typing import Any

import httpx

from tests.builders.browser import App

EDIT = ("on_edit", "on_lengths", "on_start_facts", "on_suggest", "on_redraw_panels")
"""Handlers that follow an edit."""


class EditedPage:
    """Page of a running app, which many tabs may have open."""

    def __init__(self, app: App) -> None:
        self._client = httpx.Client(base_url=app.url, timeout=120)
        config = self._client.get("config").json()
        self._components = {each["id"]: each for each in config["components"]}
        self._events: dict[str, dict[str, Any]] = {}
        for event in config["dependencies"]:
            self._events.setdefault(event["api_name"], event)

    def load(self, tab: str) -> None:
        """Open the page in a tab, and close it."""
        self._fire("on_load", tab)
        self.edit(tab)
        with self._client.stream("GET", f"gradio_api/heartbeat/{tab}") as alive:
            next(alive.iter_raw())

    def edit(self, tab: str, **fields: object) -> None:
        """Send a form in which some fields have other values."""
        for name in EDIT:
            self._fire(name, tab, **fields)

    def _fire(self, name: str, tab: str, **fields: object) -> None:
        event = self._events[name]
        data = [self._value(self._components[each], fields) for each in event["inputs"]]
        sent = {"data": data, "fn_index": event["id"], "session_hash": tab}
        self._client.post("gradio_api/run/predict", json=sent).raise_for_status()

    def _value(self, component: dict[str, Any], fields: dict[str, object]) -> object:
        if component["type"] == "state":
            return None
        properties = component["props"]
        name = (properties.get("elem_id") or "").removeprefix("field-").replace("-", "_")
        return fields.get(name, properties.get("value"))
