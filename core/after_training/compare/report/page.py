"""Report as one HTML file that needs nothing: styles and plots are inside. Escapes all text."""

import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from core.after_training.compare.report import svg
from core.after_training.compare.report.sentences import cautions, findings
from core.after_training.compare.report.summary import RunFigures, Summary
from core.after_training.compare.report.tables import Table, answers, tables
from core.wording import COMPONENT_COLOURS, memory

STYLE = Path(__file__).with_name("report.css")
GIB, MIB = 2**30, 2**20
MAX_POINTS = 400
CANVASES = (svg.WIDE, svg.NARROW)
"""Every plot is drawn for both. The style shows one, by the width of the window."""


def html_of(summary: Summary) -> str:
    """Return the whole file."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(summary.title)}</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{body_of(summary)}</main></body></html>\n"
    )


def body_of(summary: Summary) -> str:
    """Return what is inside the page, for the file and for the Runs tab."""
    return "".join(_parts(summary))


def _parts(summary: Summary) -> Iterator[str]:
    when = time.strftime("%d %B %Y, %H:%M", time.localtime(summary.created))
    yield f"<h1>{escape(summary.title)}</h1><p class='when'>{when}</p>"
    yield f"<p class='question'>{escape(summary.question)}</p>"
    yield _section("What the runs say", _list(findings(summary)))
    found = tables(summary)
    yield _table(found[0]) if found and found[0].title == "Results" else ""
    yield _losses(summary)
    yield _memory(summary)
    yield from map(_table, found[1:] if found and found[0].title == "Results" else found)
    yield _answers(summary)
    yield _section("What must not be concluded", _list(cautions(summary)))
    if summary.command:
        yield _section("To repeat it", f"<pre>{escape(summary.command)}</pre>")


def _section(title: str, content: str) -> str:
    if not content:
        return ""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    if items:
        return f"<ul class='sentences'>{items}</ul>"
    return ""


def _table(table: Table, heading: str = "h2") -> str:
    cells = "".join(f"<th scope='col'>{escape(head)}</th>" for head in table.heads)
    rows = ""
    for name, *values in table.rows:
        inside = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows += f"<tr><th scope='row'>{escape(name)}</th>{inside}</tr>"
    title = f"<{heading}>{escape(table.title)}</{heading}>"
    grid = f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
    label = escape(table.title, quote=True)
    # A part that scrolls must be reached by keyboard, and then needs a name.
    scrolls = f"<div class='scrolls' tabindex='0' role='region' aria-label='{label}'>"
    note = f"<p class='when'>{escape(table.note)}</p>" if table.note else ""
    return f"<section>{title}{scrolls}{grid}</div>{note}</section>"


def _losses(summary: Summary) -> str:
    shown = [group for group in summary.groups if any(run.run for run in group.runs)]
    colours, legend = _colours(summary, [group.label for group in shown])
    content = ""
    for key, title in (("eval_loss", "evaluation loss"), ("loss", "training loss")):
        lines = [
            _line(run, key, colours[group.label])
            for group in sorted(shown, key=lambda group: group is summary.best)  # that on top
            for run in group.runs
            if run.run
        ]
        content += "".join(svg.line_chart(lines, "step", title, each) for each in CANVASES)
    if not content:
        return ""
    return _section("Loss curves", svg.legend(legend) + content)


def _colours(
    summary: Summary, labels: Sequence[str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the colour of each group, and the legend.

    More groups than colours cannot be told apart: then the best one stands out from the rest.
    """
    if len(labels) <= len(svg.LINE_COLOURS):
        colours = dict(zip(labels, svg.LINE_COLOURS, strict=False))
        return colours, colours
    colours = dict.fromkeys(labels, svg.UNKNOWN_COLOUR)
    legend = {f"{len(labels)} ways": svg.UNKNOWN_COLOUR}
    if summary.best:
        colours[summary.best.label] = svg.LINE_COLOURS[1]
        others = f"the other {len(labels) - 1}"
        legend = {summary.best.label: svg.LINE_COLOURS[1], others: svg.UNKNOWN_COLOUR}
    return colours, legend


def _line(figures: RunFigures, key: str, colour: str) -> svg.PlotLine:
    title = f"{figures.trial.point.label}, seed {figures.trial.seed}"
    curve = figures.run.curves(MAX_POINTS).get(key) if figures.run else None
    points: list[tuple[float, float]] = []
    if curve is not None:
        points = [(float(x), float(y)) for x, y in zip(curve.steps, curve.values, strict=True)]
    return svg.PlotLine(title, colour, points, is_dotted=figures.state != "finished")


def _memory(summary: Summary) -> str:
    bars: list[svg.Bar] = []
    used: dict[str, None] = {}
    capacity = None
    for group in summary.groups:
        shown = group.shown
        if not shown.components or shown.run is None:
            continue
        measured = shown.peak_bytes if shown.run.peak_kind == "process" else None
        if shown.run.status.peak_device_bytes:
            measured = shown.run.status.peak_device_bytes
        total = sum(shown.components.values())
        bars.append(svg.Bar(group.label, dict(shown.components), memory(total), measured))
        used |= dict.fromkeys(shown.components)
        capacity = shown.run.status.device_capacity_bytes or capacity
    unit, name = (
        (GIB, "GiB") if any(sum(bar.parts.values()) > GIB for bar in bars) else (MIB, "MiB")
    )
    title = f"predicted memory in {name}, line: measured"
    charts = [svg.stacked_bars(bars, capacity, unit, title, each) for each in CANVASES]
    content = "".join(charts)
    titles = {each: each.replace("_", " ") for each in used}
    if all(
        group.shown.run is None or group.shown.run.peak_kind == "process"
        for group in summary.groups
    ):
        titles["cuda_context"] = "Python and libraries"
    colours = {titles[each]: COMPONENT_COLOURS.get(each, svg.UNKNOWN_COLOUR) for each in used}
    return _section("Memory", content and svg.legend(colours) + content)


def _answers(summary: Summary) -> str:
    found = "".join(_table(each, "h3") for each in answers(summary))
    return _section("Answers side by side", found)
