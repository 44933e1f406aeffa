"""The runs as a list to choose from, and the comparison of several, as HTML. Escapes all text of people's."""

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np

from core import runs
from core.resolve import reference_of
from core.runs import Run
from core.wording import ago, duration, memory
from ui.render.run import SIGNS

SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 72, 18, 40
LARGEST_SPARK_BYTES = 2 * 2**20
"""Of metrics.jsonl: a longer one costs too much for a picture this small."""


def run_list(
    shown: Sequence[Run], num_found: int, chosen: str | None, compared: Collection[str]
) -> str:
    """The runs, the newest first, each a button; a box at each puts it into the comparison."""
    if not shown:
        return '<p class="empty">No run here. Press <b>Start training</b> on the Train tab.</p>'
    items = "".join(_item(run, run.id == chosen, run.id in compared) for run in shown)
    more = num_found - len(shown)
    rest = f'<p class="notice">and {more:,} more: search for them</p>' if more else ""
    return f'<ul class="run-list">{items}</ul>{rest}'


def _item(run: Run, is_chosen: bool, is_compared: bool) -> str:
    share = 100 * run.step / run.max_steps if run.max_steps else 0
    name = escape(run.name)
    facts = " · ".join(_facts(run))
    return (
        f'<li class="{run.state}"><input type="checkbox" data-compare="{run.id}" aria-label="Compare {name}" '
        f'title="Compare" {"checked" if is_compared else ""}>'
        f'<button type="button" data-run="{run.id}" aria-pressed="{str(is_chosen).lower()}">'
        f'<span class="name"><i title="{run.state}">{SIGNS[run.state]}</i> {name}</span>{sparkline(run)}'
        f'<span class="facts">{escape(facts)}</span>'
        f'<span class="progress"><span style="width:{share:.1f}%"></span></span></button></li>'
    )


def _facts(run: Run) -> Iterator[str]:
    """What tells a run from the others, and how it came out."""
    yield from (
        reference_of(run.job.model).rsplit("/", 1)[-1],
        run.job.stage,
        run.job.method,
        *run.about.tags,
    )
    if run.loss is not None:
        yield f"loss {run.loss:.4g}"
    if run.peak_bytes:
        yield memory(run.peak_bytes)
    if run.seconds and not run.is_active:
        yield duration(run.seconds)
    if run.usd:
        yield f"${run.usd:,.2f}"
    yield ago(run.created)


def sparkline(run: Run) -> str:
    """The loss as small as a word; nothing for fewer than two values."""
    try:
        size = (run.folder / "metrics.jsonl").stat().st_size
    except FileNotFoundError:
        return ""
    return _spark(run.folder, size) if size <= LARGEST_SPARK_BYTES else ""


@lru_cache(maxsize=1000)
def _spark(folder: Path, _size: int) -> str:
    curve = runs.read_curves(folder, SPARK_POINTS).get("loss")
    values = curve.values[np.isfinite(curve.values)] if curve else np.empty(0)
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
    """How many runs there are, and what they take of the disk."""
    if not listed:
        return ""
    waiting = sum(run.state == "queued" for run in listed)
    measured = listed[:MOST_MEASURED]
    size = memory(sum(map(runs.disk_bytes, measured)))
    where = "" if len(measured) == len(listed) else f" in the newest {len(measured):,}"
    parts = [
        f"{len(listed):,} run{'s' * (len(listed) != 1)}",
        f"{size}{where}",
        *([f"{waiting:,} in the queue"] if waiting else []),
    ]
    return f'<p class="notice">{" · ".join(parts)}</p>'


MOST_MEASURED = 200


def differences(compared: Sequence[Run]) -> str:
    """What differs between runs, and how each came out."""
    if len(compared) < 2:
        return ""
    heads = "".join(f"<th>{escape(run.name)}</th>" for run in compared)
    lines = "".join(
        f"<tr><th>{escape(each.name)}</th>"
        + "".join(f"<td>{escape(_value(each.name, value))}</td>" for value in each.values)
        + "</tr>"
        for each in runs.compare(compared)
    )
    return f'<div class="measured scrolls"><table><tr><th></th>{heads}</tr>{lines}</table></div>'


def _value(name: str, value: object) -> str:
    if value is None or value == "":
        return "–"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return memory(value)
    if name == "seconds" and isinstance(value, int | float):
        return duration(value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
