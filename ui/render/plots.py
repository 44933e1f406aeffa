"""The plots of a run as plotly figures: the PLOTS table and how a row of it is drawn. Reads metrics, writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from core import runs
from core.runs import Run
from ui.words import gib

MODEBAR_NOISE = ["select", "lasso", "zoomIn", "zoomOut", "pan", "zoom", "autoScale"]
"""Plotly's buttons that a mouse makes needless: dragging zooms, a double click shows everything again."""
ACCENT, FAINT, GREEN, RED = "#4477aa", "#99bbdd", "#228833", "#cc3311"


@dataclass(frozen=True)
class Trace:
    """One line of a plot: a key of metrics.jsonl and how it is drawn."""

    key: str
    name: str
    colour: str
    width: float = 2
    dash: str = "solid"
    markers: bool = False
    smoothing: float = 0.0
    """0 draws the values; 0.9 draws an exponential mean that remembers about ten of them."""


@dataclass(frozen=True)
class Plot:
    """One plot of a run."""

    id: str
    title: str
    unit: str
    traces: tuple[Trace, ...]
    scale: float = 1.0
    """Values are divided by this: 2**30 shows bytes as GiB."""
    starts_at_zero: bool = False


PLOTS: Mapping[str, Plot] = {
    plot.id: plot
    for plot in (
        Plot(
            "loss",
            "Loss",
            "",
            (
                Trace("loss", "train", FAINT, width=1),
                Trace("loss", "smoothed", ACCENT, width=2.5, smoothing=0.9),
                Trace("eval_loss", "eval", RED, width=1.5, markers=True),
            ),
        ),
        Plot(
            "memory",
            "Memory",
            "GiB",
            (
                Trace("memory_allocated_bytes", "allocated", ACCENT),
                Trace("memory_reserved_bytes", "reserved", "#ccbb44"),
                Trace("device_used_bytes", "in use by this run", "#aa3377"),
            ),
            scale=2**30,
            starts_at_zero=True,
        ),
        Plot("learning_rate", "Learning rate", "", (Trace("learning_rate", "learning rate", ACCENT),)),
        Plot("grad_norm", "Gradient norm", "", (Trace("grad_norm", "gradient norm", ACCENT),)),
        Plot("tokens_per_second", "Speed", "tokens/s", (Trace("tokens_per_second", "tokens/s", ACCENT),)),
    )
}


def figure(plot: Plot, run: Run | None) -> go.Figure:
    """A plot of a run's metrics. `uirevision` is the run, so new points never undo a person's zoom."""
    rows = runs.metrics(run.folder) if run else ()
    drawn = go.Figure()
    for trace in plot.traces:
        points = [(row["step"], row[trace.key] / plot.scale) for row in rows if trace.key in row]
        if points:
            steps, values = zip(*points, strict=True)
            drawn.add_trace(_line(trace, steps, _smooth(values, trace.smoothing)))
    if run and plot.id == "memory":
        _add_memory_lines(drawn, run)
    drawn.update_layout(
        uirevision=run.id if run else "none",
        height=260,
        margin={"l": 56, "r": 16, "t": 34, "b": 36},
        title={"text": f"{plot.title}{f', {plot.unit}' if plot.unit else ''}", "x": 0.01, "font": {"size": 14}},
        xaxis={"title": None, "zeroline": False, "rangemode": "tozero", "gridcolor": "rgba(128,128,128,0.15)"},
        yaxis={
            "zeroline": False,
            "gridcolor": "rgba(128,128,128,0.15)",
            "exponentformat": "power",
            "rangemode": "tozero" if plot.starts_at_zero else "normal",
        },
        legend={"orientation": "h", "x": 0.16, "xanchor": "left", "y": 1.17},
        modebar={"bgcolor": "rgba(0,0,0,0)", "remove": MODEBAR_NOISE},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "color": "#808890", "size": 12},
        hovermode="x unified",
        showlegend=len(plot.traces) > 1,
    )
    return drawn


def figures(run: Run | None) -> str:
    """Every plot of a run as JSON: {plot id: {data, layout}}, for ui/plots.js."""
    drawn = (f'"{name}": {figure(plot, run).to_json()}' for name, plot in PLOTS.items())
    return f"{{{', '.join(drawn)}}}"


def _line(trace: Trace, steps: Sequence[int], values: Sequence[float]) -> go.Scatter:
    return go.Scatter(
        x=list(steps),
        y=list(values),
        name=trace.name,
        mode="lines+markers" if trace.markers or len(steps) == 1 else "lines",
        line={"color": trace.colour, "width": trace.width, "dash": trace.dash},
        hovertemplate="%{y:.4g}",
    )


def _smooth(values: Sequence[float], memory_of: float) -> list[float]:
    """Exponential mean, corrected for its start at zero (Kingma and Ba 2015, section 3)."""
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean = memory_of * mean + (1 - memory_of) * value
        weight = memory_of * weight + (1 - memory_of)
        smoothed.append(mean / weight)
    return smoothed


def _add_memory_lines(drawn: go.Figure, run: Run) -> None:
    """What was predicted for the process, dashed, and what the card holds, where that is near enough to matter."""
    predicted = runs.read_json(run.folder / "estimate.json").get("total_bytes", 0)
    predicted += run.status.get("baseline_bytes", 0)  # on a CPU: the program before it loads a model
    capacity = run.status.get("device_capacity_bytes", 0)
    if predicted:
        label = f"predicted {gib(predicted, 1)}"
        drawn.add_hline(y=predicted / 2**30, line={"dash": "dash", "color": GREEN, "width": 1.5}, annotation_text=label)
    if capacity and capacity < 3 * max(predicted, 1):
        label = f"card {gib(capacity, 1)}"
        drawn.add_hline(y=capacity / 2**30, line={"color": RED, "width": 1.5}, annotation_text=label)
