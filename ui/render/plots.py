"""The plots of a run as plotly figures: the PLOTS table and how a row of it is drawn. Reads metrics, writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from core import runs
from core.runs import Run
from core.wording import memory

Floats = NDArray[np.float64]
NO_TEMPLATE = go.layout.Template()
"""Plotly's usual one is 7 kB of JSON with every figure, of which none is wanted here."""
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
        Plot(
            "rewards",
            "Rewards",
            "",
            (
                Trace("reward", "reward", ACCENT),
                Trace("mean_reward", "score", ACCENT),
                Trace("rewards/chosen", "chosen", GREEN),
                Trace("rewards/rejected", "rejected", RED),
                Trace("rewards/margins", "margin", "#aa3377"),
                Trace("margin", "margin of the scores", "#aa3377"),
            ),
        ),
        Plot(
            "rewards_apart",
            "What each reward gives",
            "",
            (
                Trace("rewards/exact_match/mean", "exact match", ACCENT),
                Trace("rewards/regex/mean", "pattern", "#ee6677"),
                Trace("rewards/json/mean", "JSON", GREEN),
                Trace("rewards/length/mean", "length", "#ccbb44"),
                Trace("rewards/reward_model/mean", "reward model", "#aa3377"),
            ),
        ),
        Plot(
            "accuracies",
            "How often the better answer wins",
            "",
            (
                Trace("rewards/accuracies", "train", ACCENT),
                Trace("accuracy", "train", ACCENT),
                Trace("eval_rewards/accuracies", "eval", RED, markers=True),
                Trace("eval_accuracy", "eval", RED, markers=True),
            ),
        ),
        Plot(
            "token_accuracy",
            "How often the right token is the likeliest",
            "",
            (
                Trace("mean_token_accuracy", "train", ACCENT),
                Trace("eval_mean_token_accuracy", "eval", RED, markers=True),
            ),
        ),
        Plot("kl", "Distance from the reference (KL)", "", (Trace("kl", "KL", ACCENT),)),
        Plot(
            "completions",
            "Length of the drawn answers",
            "tokens",
            (
                Trace("completions/mean_length", "mean", ACCENT),
                Trace("completions/max_length", "longest", FAINT),
            ),
        ),
        Plot(
            "alike",
            "Prompts whose answers are all worth the same",
            "share",
            (Trace("frac_reward_zero_std", "share", ACCENT),),
        ),
        Plot(
            "learning_rate", "Learning rate", "", (Trace("learning_rate", "learning rate", ACCENT),)
        ),
        Plot("grad_norm", "Gradient norm", "", (Trace("grad_norm", "gradient norm", ACCENT),)),
        Plot(
            "where_time_goes",
            "Where the time goes",
            "seconds a step",
            (
                Trace("forward_seconds", "forward", ACCENT),
                Trace("backward_seconds", "backward", "#ee6677"),
                Trace("optimizer_seconds", "optimizer", "#ccbb44"),
                Trace("generation_seconds", "drawing answers", "#66ccee"),
                Trace("data_seconds", "data", GREEN),
                Trace("other_seconds", "other", "#999999"),
            ),
            starts_at_zero=True,
        ),
        Plot(
            "tokens_per_second",
            "Speed",
            "tokens/s",
            (Trace("tokens_per_second", "tokens/s", ACCENT),),
        ),
    )
}


ALWAYS_SHOWN = ("loss", "memory")
"""The plots that a person looks for; the others stand folded away, and only if their run has such numbers."""
COMPARISON = Plot("comparison", "Loss of the chosen runs", "", ())
RUN_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
"""One for each compared run. Paul Tol's bright palette."""


def figures(run: Run | None, compared: Sequence[Run] = ()) -> str:
    """Every plot that has something to show, as JSON: {plot id: {data, layout}}, for ui/plots.js."""
    known = runs.read_curves(run.folder).keys() if run else frozenset[str]()
    shown = [plot for plot in PLOTS.values() if known & {each.key for each in plot.traces}]
    drawn = {plot.id: figure(plot, run) for plot in shown}
    if compared:
        drawn[COMPARISON.id] = comparison(compared)
    texts = (f'"{name}": {each.to_json()}' for name, each in drawn.items())
    return f"{{{', '.join(texts)}}}"


def figure(plot: Plot, run: Run | None) -> go.Figure:
    """A plot of a run's metrics. `uirevision` is the run, so new points never undo a person's zoom."""
    drawn = empty(plot.id, run.id if run else "none")
    if run is None:
        return drawn
    curves = runs.read_curves(run.folder)
    for trace in plot.traces:
        if curve := curves.get(trace.key):
            values = (
                _smooth(curve.values / plot.scale, trace.smoothing)
                if trace.smoothing
                else curve.values / plot.scale
            )
            drawn.add_trace(_line(trace, curve.steps, values))
    for step in curves["resumed_from"].values.tolist() if "resumed_from" in curves else ():
        drawn.add_vline(
            x=step, line={"dash": "dot", "color": "#999999", "width": 1}, annotation_text="resumed"
        )
    if plot.id == "memory":
        _add_memory_lines(drawn, run)
    return drawn


def comparison(compared: Sequence[Run]) -> go.Figure:
    """The smoothed losses of several runs in one plot."""
    drawn = empty(COMPARISON.id, " ".join(run.id for run in compared))
    for number, run in enumerate(compared):
        if curve := runs.read_curves(run.folder).get("loss"):
            colour = RUN_COLOURS[number % len(RUN_COLOURS)]
            trace = Trace(
                "loss", run.name, colour, dash="solid" if number < len(RUN_COLOURS) else "dash"
            )
            drawn.add_trace(_line(trace, curve.steps, _smooth(curve.values, 0.9)))
    return drawn


def empty(name: str, revision: str = "none") -> go.Figure:
    """A plot without lines."""
    plot = PLOTS.get(name, COMPARISON)
    title = f"{plot.title}, {plot.unit}" if plot.unit else plot.title
    grid = "rgba(128,128,128,0.15)"
    layout = {  # as one: update_layout takes ten times as long
        "template": NO_TEMPLATE,
        "uirevision": revision,
        "height": 280,
        "margin": {"l": 56, "r": 16, "t": 34, "b": 60},
        "title": {"text": title, "x": 0.01, "font": {"size": 14}},
        "xaxis": {"title": None, "zeroline": False, "rangemode": "tozero", "gridcolor": grid},
        "yaxis": {
            "zeroline": False,
            "gridcolor": grid,
            "exponentformat": "power",
            "rangemode": "tozero" if plot.starts_at_zero else "normal",
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": -0.16,
            "yanchor": "top",
        },  # beside the title a phone has no room
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "remove": MODEBAR_NOISE},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "color": "#808890", "size": 12},
        "hovermode": "x unified",
        "showlegend": len(plot.traces) > 1 or plot is COMPARISON,
    }
    return go.Figure(layout=layout)


def _line(trace: Trace, steps: Floats, values: Floats) -> go.Scatter:
    return go.Scatter(
        x=steps.tolist(),
        y=values.tolist(),
        name=trace.name,
        mode="lines+markers" if trace.markers or len(steps) == 1 else "lines",
        line={"color": trace.colour, "width": trace.width, "dash": trace.dash},
        hovertemplate="%{y:.4g}",
    )


def _smooth(values: Floats, memory_of: float) -> Floats:
    """Exponential mean, corrected for its start at zero (Kingma and Ba 2015, section 3); a gap is passed over.

    It remembers at most a sixth of the values: of a short run it would else still tell of the start at the end.
    """
    memory_of = min(memory_of, 1 - 1 / max(1.0, len(values) / 6))
    mean, weight, smoothed = 0.0, 0.0, np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            mean = memory_of * mean + (1 - memory_of) * float(value)
            weight = memory_of * weight + (1 - memory_of)
            smoothed[index] = mean / weight
    return smoothed


def _add_memory_lines(drawn: go.Figure, run: Run) -> None:
    """What was predicted for the process, dashed, and what the card holds, where that is near enough to matter."""
    predicted = runs.read_json(run.folder / "estimate.json").get("total_bytes", 0)
    predicted += run.status.baseline_bytes or 0  # on a CPU: the program before it loads a model
    capacity = run.status.device_capacity_bytes
    if predicted:
        _add_level(drawn, predicted, f"predicted: {memory(predicted)}", GREEN, "dash")
    if capacity and capacity < 3 * max(predicted, 1):
        _add_level(drawn, capacity, f"the card: {memory(capacity)}", RED, "solid")


def _add_level(drawn: go.Figure, num_bytes: int, name: str, colour: str, dash: str) -> None:
    """A line across the plot that is named in the legend, where it cannot lie on another."""
    level, line = num_bytes / 2**30, {"color": colour, "width": 1.5, "dash": dash}
    drawn.add_shape(
        xref="paper", x0=0, x1=1, y0=level, y1=level, line=line, name=name, showlegend=True
    )
