"""Panels that are drawn only while they are open: a step, what fits where, other methods."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import gradio as gr

from core.after_training.compare.on_card import (
    Wish,
    find_gpu,
    models_on_card,
    most_demanding_methods,
)
from core.job import JobSpec, SpecError
from core.memory import TimelinePoint, timeline
from core.models import Gpu, ModelShape
from core.resolve import resolve
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from ui import render
from ui.events import Updates
from ui.form import LABELS, model_choices
from ui.handlers.answer import Answer
from ui.handlers.comparing import FIRST_SWEEP, Sweep, drawn
from ui.render import comparison
from ui.render import estimate as estimate_panel
from ui.render import timeline as timeline_panel

OpenPanels = Mapping[str, str]
"""Panels that are open: name -> its HTML."""


def _timeline(answer: Answer, _sweep: Sweep) -> str:
    resolved = answer.require()
    if resolved.model.shape is None:
        return render.notice("There is no timeline for a traced architecture.", "plain")
    longest = resolved.rows.max_tokens if resolved.rows else None
    points = _timeline_of(resolved.job, resolved.model.shape, resolved.gpu, longest)
    return timeline_panel.timeline(points, resolved.estimate())


@lru_cache(maxsize=8)
def _timeline_of(
    job: JobSpec, shape: ModelShape, gpu: Gpu, longest: int | None
) -> tuple[TimelinePoint, ...]:
    return timeline(job, shape, gpu, longest)


def _what_fits(answer: Answer, _sweep: Sweep) -> str:
    resolved = answer.resolved
    if resolved is None:
        # Only these two fields count: a problem elsewhere in the form must not hide the table.
        resolved = resolve({name: answer.values[name] for name in ("model", "max_length")})
    batches = resolved.largest_batches()
    return estimate_panel.what_fits(batches, resolved.model.title, resolved.job.max_length)


def _card_models(answer: Answer, _sweep: Sweep) -> str:
    resolved = answer.require()
    gpu, job = resolved.gpu, resolved.job
    if gpu.compute_capability == (0, 0):
        return render.notice("Choose a card under GPU to see which models it trains.", "plain")
    return _card_models_of(gpu, job.stage, job.max_length)


@lru_cache(maxsize=8)
def _card_models_of(gpu: Gpu, stage: str, max_length: int) -> str:
    found = models_on_card(None, Wish(gpu, stage, max_length))
    return comparison.models_of_card(found, gpu, stage, max_length)


PANELS: Mapping[str, Callable[[Answer, Sweep], str]] = MappingProxyType(
    {
        "compare": drawn,
        "timeline": _timeline,
        "what_fits": _what_fits,
        "card_models": _card_models,
    }
)
"""Name -> function that draws it. They raise SpecError for a job that cannot run."""


def on_card(gpu: str, stage: str) -> Updates:
    """Mark in the menu of models how the chosen card can train each, or that it cannot."""
    try:
        card = find_gpu(gpu)
    except SpecError:
        return {}
    if card.compute_capability == (0, 0) or stage not in STAGES:
        return {"model": gr.update(choices=model_choices())}
    marks = {
        model: f"{METHODS[method].title} fits" if method else "too large"
        for model, method in most_demanding_methods(card, stage).items()
    }
    return {"model": gr.update(choices=model_choices(marks))}


def on_open_panel(
    name: str, open_panels: OpenPanels, answer: Answer, sweep: Sweep = FIRST_SWEEP
) -> Updates:
    """Draw a panel that was opened."""
    html = _draw(name, answer, sweep)
    return {name: html, "open_panels": {**open_panels, name: html}}


def on_close_panel(name: str, open_panels: OpenPanels) -> Updates:
    """Forget a panel that was closed."""
    return {"open_panels": {other: open_panels[other] for other in open_panels if other != name}}


def on_redraw_panels(
    open_panels: OpenPanels, answer: Answer, sweep: Sweep = FIRST_SWEEP
) -> Updates:
    """Draw the open panels again. Send those that have changed."""
    shown = {name: _draw(name, answer, sweep) for name in open_panels}
    changed = {name: html for name, html in shown.items() if html != open_panels[name]}
    return {**changed, "open_panels": shown} if changed else {}


def on_sweep(
    open_panels: OpenPanels,
    answer: Answer,
    *,
    sweep_methods: list[str],
    sweep_lines: str,
    sweep_seeds: float | None,
    sweep_tried: float | None,
    sweep_at_once: float | None = None,
) -> Updates:
    """Draw the comparison again for other methods and settings."""
    asked = (sweep_methods, sweep_lines, sweep_seeds, sweep_tried)
    sweep = Sweep.sent(*asked, at_once=sweep_at_once)
    return {"sweep": sweep, **on_open_panel("compare", open_panels, answer, sweep)}


def _draw(name: str, answer: Answer, sweep: Sweep) -> str:
    if not answer.values:
        return "Computing ..."  # the first edit is not answered yet
    try:
        return PANELS[name](answer, sweep)
    except SpecError as error:
        return estimate_panel.refusal(error, LABELS)
