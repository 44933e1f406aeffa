"""List of runs and comparison of several, as HTML. Escapes all text that comes from users."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from html import escape

import numpy as np

from core.after_training.differences import compare_runs
from core.dataset import counted
from core.resolve import reference_of
from core.runs import Run
from core.runs.sentences import check_words, peak_memory
from core.wording import ago, duration, memory
from ui.render import table
from ui.render.run import SIGNS, share_done

SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 72, 18, 40
MAX_SPARK_BYTES = 2 * 2**20
"""Size of metrics.jsonl above which a picture this small costs too much."""
MAX_MEASURED = 200
"""Newest runs whose disk space is added up."""


def run_list(shown: Sequence[Run], num_found: int, chosen: str, compared: Collection[str]) -> str:
    """Return the runs, newest first: a button for each, and a box to compare it."""
    if not shown:
        return '<p class="empty">No runs here. Press <b>Start training</b> on the Train tab.</p>'
    items = "".join(_item(run, run.id == chosen, run.id in compared) for run in shown)
    num_hidden = num_found - len(shown)
    rest = ""
    if num_hidden:
        rest = f'<p class="notice">{num_hidden:,} more: use the search to find them</p>'
    return f'<ul class="run-list">{items}</ul>{rest}'


def unreadable_runs(reasons: Mapping[str, str]) -> str:
    """Return the runs that the list leaves out, each with the reason and a button to delete it."""
    if not reasons:
        return ""
    items = "".join(
        f"<li><span><b>{escape(run_id)}</b> {escape(reason)}</span>"
        f'<button type="button" data-delete="{escape(run_id)}">Delete</button></li>'
        for run_id, reason in reasons.items()
    )
    return f'<div class="unreadable"><p>Cannot be read:</p><ul>{items}</ul></div>'


def _item(run: Run, is_chosen: bool, is_compared: bool) -> str:
    name = escape(run.name)
    checked = "checked" if is_compared else ""
    facts = escape(" · ".join(_facts(run)))
    return (
        f'<li class="{run.state}"><input type="checkbox" data-compare="{run.id}" '
        f'aria-label="Compare {name}" title="Compare" {checked}>'
        f'<button type="button" data-run="{run.id}" aria-pressed="{str(is_chosen).lower()}">'
        f'<span class="name"><i title="{run.state}">{SIGNS[run.state]}</i> {name}</span>'
        f'{sparkline(run)}<span class="facts">{facts}</span><span class="progress">'
        f'<span style="width:{100 * share_done(run):.1f}%"></span></span></button></li>'
    )


def _facts(run: Run) -> Iterator[str]:
    """Yield what tells a run from others, and its results."""
    yield reference_of(run.job.model).rsplit("/", 1)[-1]
    yield run.job.stage
    yield run.job.method
    yield from run.about.tags
    if run.submission and run.is_active:
        yield run.submission.sentence
    if run.loss is not None:
        yield f"loss {run.loss:.4g}"
    if run.checks:
        yield check_words(run)
    if run.peak_bytes:
        yield peak_memory(run)
    if run.seconds and not run.is_active:
        yield duration(run.seconds)
    if run.usd:
        yield f"${run.usd:,.2f}"
    yield ago(run.created)


def sparkline(run: Run) -> str:
    """Return the loss curve as small as a word, "" for fewer than two values."""
    try:
        size = (run.folder / "metrics.jsonl").stat().st_size
    except FileNotFoundError:
        return ""
    return _sparkline(run, size) if size <= MAX_SPARK_BYTES else ""


@lru_cache(maxsize=1000)
def _sparkline(run: Run, _size: int) -> str:
    curve = run.curves(SPARK_POINTS).get("loss")
    if curve is None:
        return ""
    values = curve.values[np.isfinite(curve.values)]
    if len(values) < 2:
        return ""
    across = np.linspace(1, SPARK_WIDTH - 1, len(values))
    down = 1 + (values.max() - values) * (SPARK_HEIGHT - 2) / (np.ptp(values) or 1)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return (
        f'<svg class="spark" width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}" aria-hidden="true">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.3"/></svg>'
    )


def facts(listed: Sequence[Run]) -> str:
    """Return how many runs there are, and how much disk space they take."""
    if not listed:
        return ""
    measured = listed[:MAX_MEASURED]
    size = memory(sum(run.disk_bytes() for run in measured))
    if len(measured) < len(listed):
        size += f" in the newest {len(measured):,}"
    parts = [counted(len(listed), "run"), size]
    if num_queued := sum(run.state == "queued" for run in listed):
        parts.append(f"{num_queued:,} in the queue")
    return f'<p class="notice">{" · ".join(parts)}</p>'


def differences(compared: Sequence[Run]) -> str:
    """Return a table of what differs between runs, and of their results."""
    if len(compared) < 2:
        return ""
    found = compare_runs(compared)
    rows = [(each.name, *(_value(each.name, value) for value in each.values)) for each in found]
    names = [run.name for run in compared]
    return f'<div class="measured scrolls" tabindex="0">{table(rows, names)}</div>'


def _value(name: str, value: object) -> str:
    if value is None or value == "":
        return "–"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return memory(value)
    if name == "seconds" and isinstance(value, int | float):
        return duration(value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value)
