"""Choose where a run trains: this machine, or a cluster that it sees. Sends nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import gradio as gr

from core.runs.engines import ENGINES, HERE, Found, Placement, engine_of, found_engines
from ui import render
from ui.events import Updates

USUAL = ("(usual)", "")
NOTE = (
    "The run folder must lie on storage that the nodes see. The estimate is for the card chosen as "
    "GPU: choose that of the cluster."
)


@dataclass(frozen=True)
class PlacingHandlers:
    """Events of the choice where a run trains."""

    found: dict[str, Found] = field(default_factory=dict)
    """Clusters that were found last, by the id of their engine."""

    def on_look_for_clusters(self) -> Updates:
        """Show the choice if there is one."""
        self.found.clear()
        self.found.update(found_engines())
        choices = [("This machine", HERE)]
        choices += [(f"My cluster ({ENGINES[name].title})", name) for name in self.found]
        shown = gr.update(choices=choices, value=HERE)
        return {"where_panel": gr.update(visible=bool(self.found)), **_hide(), "where": shown}

    def on_where(self, where: str) -> Updates:
        """Ask for what the chosen cluster has to know."""
        if where not in self.found:
            return _hide()
        menu = [USUAL, *((name, name) for name in self.found[where].partitions)]
        return {
            "cluster_settings": gr.update(visible=True),
            "partition": gr.update(choices=menu, value=""),
            "where_message": render.notice(NOTE),
        }


def placement_of(boxes: Mapping[str, object]) -> Placement:
    """Return where a run shall train. Raises SpecError."""
    if boxes.get("engine") in ("", HERE, None):
        return Placement()
    placement = Placement.parse(boxes)
    engine_of(placement)
    return placement


def _hide() -> Updates:
    return {"cluster_settings": gr.update(visible=False), "where_message": ""}
