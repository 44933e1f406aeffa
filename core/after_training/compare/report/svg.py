"""Plots of a report as SVG: lines and stacked bars. Text and axes take the colour of the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

from core.wording import COMPONENT_COLOURS

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
BAR_HEIGHT, BAR_GAP = 22, 14
EDGE = 6
"""Left of bars without a label before them: half of the number below their axis."""
END_LABEL_WIDTH = 90
"""Of the text at the end of a bar."""
LINE_HEIGHT = 14
LINE_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#997700",
    "#888888",
)
"""Paul Tol's bright palette, told apart by colour-blind people."""
UNKNOWN_COLOUR = "#888888"
"""For a component that only another version of Tailor names."""


@dataclass(frozen=True)
class Canvas:
    """Width for which a plot is drawn, so that its letters keep their size."""

    name: str
    """Class of its element. The page shows one or the other."""
    width: int
    label_width: int
    """Of the labels before bars; 0 puts each above its bar."""
    num_letters: int
    """Of one line of a label."""


WIDE = Canvas("wide", 720, 190, 28)
NARROW = Canvas("narrow", 358, 0, 48)
"""Of a phone of 390 pixels without its margins."""


@dataclass(frozen=True)
class PlotLine:
    """Curve of one run."""

    title: str
    colour: str
    points: Sequence[tuple[float, float]]
    is_dotted: bool = False


@dataclass(frozen=True)
class Bar:
    """Bar of stacked parts, with a mark at another value if there is one."""

    title: str
    parts: Mapping[str, float]
    """Component -> size."""
    label: str = ""
    """Text at the end of the bar."""
    mark: float | None = None


def line_chart(lines: Sequence[PlotLine], x_title: str, y_title: str, canvas: Canvas = WIDE) -> str:
    """Return a plot of lines on one scale, "" if there are no points."""
    drawn = [line for line in map(_sound, lines) if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    width = canvas.width
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    x_low, x_high = min(*xs, *x_ticks), max(*xs, *x_ticks)
    y_low, y_high = min(*ys, *y_ticks), max(*ys, *y_ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return (
            LEFT + across * (width - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    inside = "".join(_grid_line(*place(x_low, tick), tick, width - RIGHT) for tick in y_ticks)
    for tick in x_ticks:
        x, y = place(tick, y_low)
        inside += _text(min(x, width - RIGHT), y + 14, f"{tick:g}", "middle")
    inside += _text((LEFT + width) / 2, HEIGHT - 4, x_title, "middle")
    inside += f'<text x="12" y="{TOP}" transform="rotate(-90 12 {HEIGHT / 2:.0f})" '
    inside += f'text-anchor="middle" dy="{HEIGHT / 2 - TOP:.0f}">{escape(y_title)}</text>'
    colours = list(dict.fromkeys(line.colour for line in drawn))
    for line in drawn:
        spots = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
        dash = _dash(line, colours.index(line.colour))
        inside += f'<polyline points="{spots}" fill="none" stroke="{line.colour}"{dash} '
        inside += f'stroke-width="2"><title>{escape(line.title)}</title></polyline>'
    return _svg(canvas, HEIGHT, inside, f"{y_title} by {x_title}")


def _dash(line: PlotLine, number_below: int) -> str:
    """Return the dashes of a line: those drawn later have gaps, through which equal ones show."""
    if line.is_dotted:
        return ' stroke-dasharray="2 4"'
    if number_below:
        return f' stroke-dasharray="14 {6 * number_below}"'
    return ""


def stacked_bars(
    bars: Sequence[Bar], limit: float | None, unit: float, title: str, canvas: Canvas = WIDE
) -> str:
    """Return horizontal bars on one scale, with a line at the limit. Sizes are divided by `unit`.

    A limit far beyond all bars is left out, so that they stay readable.
    """
    totals = [max(sum(bar.parts.values()), bar.mark or 0) for bar in bars]
    most = max(totals, default=0)
    if not most:
        return ""
    has_limit = limit is not None and limit < 4 * most
    end = max(most, limit or 0) if has_limit else most
    left = canvas.label_width or EDGE
    scale = (canvas.width - left - END_LABEL_WIDTH) / end
    y = float(TOP)
    inside = ""
    for bar in bars:
        lines = _label_lines(bar.title, canvas.num_letters)
        inside += _label(bar.title, lines, y, canvas)
        if not canvas.label_width:
            y += LINE_HEIGHT * len(lines) + 2
        inside += "".join(_bar(bar, (left, y), scale, unit))
        y += BAR_HEIGHT + BAR_GAP
    height = y + BOTTOM
    for tick in _ticks(0, end / unit):
        inside += _text(left + tick * unit * scale, y + 14, f"{tick:g}", "middle")
    if has_limit and limit is not None:
        x = left + limit * scale
        inside += f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="4" '
        inside += f'y2="{y:.0f}"><title>capacity of the card</title></line>'
    middle = (canvas.label_width + canvas.width) / 2
    inside += _text(middle, height - 4, title, "middle")
    return _svg(canvas, height, inside, title)


def legend(colours: Mapping[str, str]) -> str:
    """Return a list of names with their colours."""
    items = ""
    for name, colour in colours.items():
        items += f'<li><i style="background:{colour}"></i>{escape(name)}</li>'
    return f'<ul class="legend">{items}</ul>'


def standalone(chart: str, components: Sequence[str], style: str) -> str:
    """Return a chart as a file of its own, with a legend of components below it."""
    start = chart.index("<svg ")
    head, inside = chart[start : chart.rindex("</svg>")].split(">", maxsplit=1)
    head = head.replace(f' class="{WIDE.name}"', "")  # of the page's style
    height = int(head.split('"')[1].split()[3])
    for place, name in enumerate(components):
        x, y = 20 + 175 * (place % 4), height + 16 + 20 * (place // 4)
        inside += f'<rect x="{x}" y="{y - 10}" width="12" height="12" '
        inside += f'fill="{COMPONENT_COLOURS.get(name, UNKNOWN_COLOUR)}"/>'
        inside += _text(x + 18, y, name.replace("_", " "))
    total = height + 20 * (1 + -(-len(components) // 4))
    head = head.replace(f" {height}", f" {total}", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{inside}</svg>\n'


def _label(title: str, lines: Sequence[str], y: float, canvas: Canvas) -> str:
    """Return the label of a bar whose row begins at `y`: before the bar, or above it."""
    anchor, x = "end", canvas.label_width - 8
    first = y + 15 - LINE_HEIGHT / 2 * (len(lines) - 1)
    if not canvas.label_width:
        anchor, x, first = "start", 0, y + LINE_HEIGHT - 2
    label = f'<text text-anchor="{anchor}"><title>{escape(title)}</title>'
    for place, line in enumerate(lines):
        spot = f'x="{x}" y="{first + LINE_HEIGHT * place:.0f}"'
        label += f"<tspan {spot}>{escape(line)}</tspan>"
    return f"{label}</text>"


def _bar(bar: Bar, corner: tuple[float, float], scale: float, unit: float) -> Iterator[str]:
    """Yield the parts of a bar from its upper left corner on, its mark, and the text at its end."""
    left, y = corner
    x = left
    for name, size in bar.parts.items():
        width = size * scale
        colour = COMPONENT_COLOURS.get(name, UNKNOWN_COLOUR)
        said = f"{name.replace('_', ' ')}: {size / unit:.2f}"
        yield f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{BAR_HEIGHT}" '
        yield f'fill="{colour}"><title>{escape(said)}</title></rect>'
        x += width
    if bar.mark is not None:
        at = left + bar.mark * scale
        yield f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{y - 4:.0f}" '
        yield f'y2="{y + BAR_HEIGHT + 4:.0f}"><title>measured</title></line>'
        x = max(x, at)
    yield _text(x + 6, y + 15, bar.label)


def _label_lines(title: str, most: int) -> list[str]:
    """Return a label on one line or, broken after a comma, on two."""
    lines = [""]
    for part in title.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(lines) == 2 or len(longer) <= most or not lines[-1]:
            lines[-1] = longer
        else:
            lines[-1] += ","
            lines.append(part)
    return [each if len(each) <= most else f"{each[: most - 1]}…" for each in lines]


def _grid_line(x: float, y: float, tick: float, end: float) -> str:
    line = f'<line class="grid" x1="{x:.1f}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(x - 6, y + 4, f"{tick:g}", "end")


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(canvas: Canvas, height: float, inside: str, label: str) -> str:
    size = f'class="{canvas.name}" viewBox="0 0 {canvas.width} {height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{inside}</svg>'


def _sound(line: PlotLine) -> PlotLine:
    points = [(x, y) for x, y in line.points if isfinite(x) and isfinite(y)]
    return PlotLine(line.title, line.colour, points, line.is_dotted)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that cover the range."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 5
    power = 10 ** floor(log10(raw))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= raw)
    first = floor(low / step)
    number = 0
    found = []
    while (first + number) * step <= high + 1e-9 * span:
        found.append(float(f"{(first + number) * step:.10g}"))
        number += 1
    return found
