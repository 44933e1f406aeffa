"""Panels that are drawn only while they are open: memory during one step, and what fits where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from core.job import SpecError
from core.memory import timeline
from core.resolve import resolve
from ui import render
from ui.events import Updates
from ui.form import LABELS
from ui.handlers.answer import Answer
from ui.render import estimate as estimate_panel
from ui.render import timeline as timeline_panel

WHAT_FITS_FIELDS = ("model", "max_length")


@dataclass(frozen=True)
class OpenPanels:
    """Panels that are open: name -> what the panel was drawn from."""

    drawn: Mapping[str, object] = field(default_factory=dict)

    def with_panel(self, name: str, source: object) -> "OpenPanels":
        """Note that a panel is open and was drawn from `source`."""
        return OpenPanels({**self.drawn, name: source})

    def without_panel(self, name: str) -> "OpenPanels":
        """Note that a panel is closed."""
        return OpenPanels({other: source for other, source in self.drawn.items() if other != name})


@dataclass(frozen=True)
class Panel:
    """One panel: what it depends on, and how it is drawn."""

    source: Callable[[Answer], object]
    """Return a value that is equal for answers with the same picture."""
    draw: Callable[[Answer], str]
    """Return HTML. Raises SpecError."""


def _draw_timeline(answer: Answer) -> str:
    resolved = answer.require()
    if resolved.model.shape is None:
        return render.notice("There is no timeline for a traced architecture.", "plain")
    return timeline_panel.timeline(timeline(resolved.job, resolved.model.shape, resolved.gpu))


def _draw_what_fits(answer: Answer) -> str:
    # Only these two fields count, so that a problem elsewhere in the form does not hide the table.
    resolved = resolve({name: answer.values[name] for name in WHAT_FITS_FIELDS})
    batches = resolved.largest_batches()
    return estimate_panel.what_fits(batches, resolved.model.title, resolved.job.max_length)


def _timeline_source(answer: Answer) -> object:
    if answer.resolved is None:
        return str(answer.error)
    return answer.resolved.job, answer.resolved.gpu


def _what_fits_source(answer: Answer) -> object:
    return [answer.values.get(name) for name in WHAT_FITS_FIELDS]


PANELS: Mapping[str, Panel] = MappingProxyType(
    {
        "timeline": Panel(_timeline_source, _draw_timeline),
        "what_fits": Panel(_what_fits_source, _draw_what_fits),
    }
)


def on_open_panel(name: str, open_panels: OpenPanels, answer: Answer) -> Updates:
    """Draw a panel that was opened."""
    source = PANELS[name].source(answer)
    return {name: _drawn(name, answer), "open_panels": open_panels.with_panel(name, source)}


def on_close_panel(name: str, open_panels: OpenPanels) -> Updates:
    """Forget a panel that was closed."""
    return {"open_panels": open_panels.without_panel(name)}


def on_redraw_panels(open_panels: OpenPanels, answer: Answer) -> Updates:
    """Draw the open panels whose job has changed."""
    updates: Updates = {}
    for name, drawn_from in open_panels.drawn.items():
        source = PANELS[name].source(answer)
        if source != drawn_from:
            updates[name] = _drawn(name, answer)
            open_panels = open_panels.with_panel(name, source)
    if updates:
        updates["open_panels"] = open_panels
    return updates


def _drawn(name: str, answer: Answer) -> str:
    try:
        return PANELS[name].draw(answer)
    except SpecError as error:
        return estimate_panel.refusal(error, LABELS)
