"""What is drawn of the form's job only while it is unfolded: the memory inside one step, and what fits where."""

from collections.abc import Callable, Mapping
from typing import Any

from core.job import SpecError
from core.memory import timeline
from core.models import gpus
from core.resolve import resolve
from ui import render
from ui.form import LABELS
from ui.handlers.shown import Shown
from ui.render import estimate as panel
from ui.render.timeline import timeline as draw_timeline

USUAL_CARDS = (
    "rtx-3060",
    "rtx-4060-ti-16gb",
    "t4",
    "rtx-4090",
    "rtx-5090",
    "l40s",
    "a100-80gb",
    "h200",
)
"""The columns of "What fits where"."""
OF_TABLE = ("model", "max_length")
"""What that table depends on."""


class UnfoldedHandlers:
    """The events of both. `unfolded` holds what is open: {its name: the fields of the form that it was drawn of}."""

    def on_timeline(self, unfolded: Mapping[str, Any], **form: object) -> Shown:
        """The picture of one step was opened."""
        return _drawn(unfolded, {"timeline": form})

    def on_what_fits(self, unfolded: Mapping[str, Any], **form: object) -> Shown:
        """The table was opened: the largest batch of the form's model and length, by method, on the usual cards."""
        return _drawn(unfolded, {"what_fits": {name: form[name] for name in OF_TABLE}})

    def on_fold(self, name: str, unfolded: Mapping[str, Any]) -> Shown:
        """One of them was closed."""
        return {"unfolded": {other: fields for other, fields in unfolded.items() if other != name}}

    def on_unfolded(self, unfolded: Mapping[str, Any], **form: object) -> Shown:
        """The form may have changed: what is open and was drawn of another one is drawn anew."""
        now = {name: {field: form[field] for field in fields} for name, fields in unfolded.items()}
        stale = {name: fields for name, fields in now.items() if fields != unfolded[name]}
        return _drawn(unfolded, stale) if stale else {}


def _what_fits(fields: Mapping[str, object]) -> str:
    try:
        resolved = resolve(fields)
        batches = resolved.largest_batches([gpus()[card] for card in USUAL_CARDS])
    except SpecError as error:
        return panel.refusal(error, LABELS)
    return panel.what_fits(batches, resolved.model.title, resolved.job.max_length)


def _timeline(form: Mapping[str, object]) -> str:
    try:
        resolved = resolve(form)
        if resolved.model.shape is None:
            return render.notice("A traced architecture has no timeline.", "plain")
        moments = timeline(resolved.job, resolved.model.shape, resolved.gpu)
    except SpecError as error:
        return panel.refusal(error, LABELS)
    return draw_timeline(moments)


DRAWN: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "timeline": _timeline,
    "what_fits": _what_fits,
}


def _drawn(unfolded: Mapping[str, Any], stale: Mapping[str, Mapping[str, object]]) -> Shown:
    shown: Shown = {name: DRAWN[name](fields) for name, fields in stale.items()}
    return shown | {"unfolded": {**unfolded, **stale}}
