"""Plots of a run as plotly figures: the PLOTS table, and how a plot is drawn."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from core.runs import Run
from core.runs.sentences import peak_memory
from core.training.contract.job import CHECK_PREFIX, check_metric
from core.wording import memory

Floats = NDArray[np.float64]
NO_TEMPLATE = go.layout.Template()
"""Plotly's default template adds 7 kB of JSON to every figure."""
HIDDEN_BUTTONS = ["select", "lasso", "zoomIn", "zoomOut", "pan", "zoom", "autoScale"]
"""Dragging zooms and a double click shows everything again, without buttons."""
BLUE, LIGHT_BLUE, GREEN, RED = "#4477aa", "#99bbdd", "#228833", "#cc3311"
YELLOW, PURPLE, PINK, CYAN, GREY = "#ccbb44", "#aa3377", "#ee6677", "#66ccee", "#999999"
LOSS_SMOOTHING = 0.9
WHOLE_WIDTH: Mapping[str, object] = {"xref": "paper", "x0": 0, "x1": 1}
"""Ends of a level that holds for every step."""


@dataclass(frozen=True)
class Line:
    """One line of a plot: a key of metrics.jsonl and how it is drawn."""

    key: str
    name: str
    colour: str = BLUE
    width: float = 2
    dash: str = "solid"
    markers: bool = False
    smoothing: float = 0.0
    """0 draws the values; 0.9 draws an exponential mean over about ten of them."""


@dataclass(frozen=True)
class Plot:
    """One plot of a run."""

    id: str
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    scale: float = 1.0
    """Values are divided by this: 2**30 shows bytes as GiB."""
    starts_at_zero: bool = False


LOSS = (
    Line("loss", "train", LIGHT_BLUE, width=1),
    Line("loss", "smoothed", BLUE, width=2.5, smoothing=LOSS_SMOOTHING),
    Line("eval_loss", "eval", RED, width=1.5, markers=True),
)
MEMORY = (
    Line("memory_allocated_bytes", "allocated", BLUE),
    Line("memory_reserved_bytes", "reserved", YELLOW),
    Line("device_used_bytes", "used by this run", PURPLE),
    Line("rank_memory_min_bytes", "least of the processes", CYAN, width=1, dash="dot"),
    Line("rank_memory_max_bytes", "most of the processes", RED, width=1, dash="dot"),
)
CHECKS = (
    Line(check_metric("identity"), "identity", GREEN, markers=True),
    Line(check_metric("capabilities"), "capabilities", RED, markers=True),
)
"""The usual suites. `lines_of` adds those of a user."""
OTHER_CHECKS = (BLUE, YELLOW, PURPLE, CYAN, PINK, GREY)
REWARDS = (
    Line("reward", "reward", BLUE),
    Line("eval_reward", "eval reward", RED, markers=True),
    Line("mean_reward", "score", BLUE),
    Line("rewards/chosen", "chosen", GREEN),
    Line("rewards/rejected", "rejected", RED),
    Line("rewards/margins", "margin", PURPLE),
    Line("margin", "score margin", PURPLE),
)
REWARDS_BY_FUNCTION = (
    Line("rewards/exact_match/mean", "exact match", BLUE),
    Line("rewards/regex/mean", "pattern", PINK),
    Line("rewards/json/mean", "JSON", GREEN),
    Line("rewards/length/mean", "length", YELLOW),
    Line("rewards/reward_model/mean", "reward model", PURPLE),
)
PREFERENCE_ACCURACY = (
    Line("rewards/accuracies", "train", BLUE),
    Line("accuracy", "train", BLUE),
    Line("eval_rewards/accuracies", "eval", RED, markers=True),
    Line("eval_accuracy", "eval", RED, markers=True),
)
TOKEN_ACCURACY = (
    Line("mean_token_accuracy", "train", BLUE),
    Line("eval_mean_token_accuracy", "eval", RED, markers=True),
)
ANSWER_LENGTH = (
    Line("completions/mean_length", "mean", BLUE),
    Line("completions/max_length", "longest", LIGHT_BLUE),
)
STEP_TIME = (
    Line("forward_seconds", "forward", BLUE),
    Line("backward_seconds", "backward", PINK),
    Line("optimizer_seconds", "optimizer", YELLOW),
    Line("generation_seconds", "generation", CYAN),
    Line("data_seconds", "data", GREEN),
    Line("other_seconds", "other", GREY),
)
RANK_TIME = (
    Line("rank_seconds_min", "fastest process", GREEN),
    Line("rank_seconds_max", "slowest process", RED),
)
_ALL = (
    Plot("loss", "Loss", LOSS),
    Plot("memory", "Memory", MEMORY, unit="GiB", scale=2**30, starts_at_zero=True),
    Plot("perplexity", "Perplexity", (Line("eval_perplexity", "eval", RED, markers=True),)),
    Plot("checks", "Tests passed", CHECKS, unit="%", starts_at_zero=True),
    Plot("rewards", "Rewards", REWARDS),
    Plot("rewards_by_function", "Rewards by function", REWARDS_BY_FUNCTION),
    Plot("preference_accuracy", "Preference accuracy", PREFERENCE_ACCURACY),
    Plot("token_accuracy", "Token accuracy", TOKEN_ACCURACY),
    Plot("kl", "KL to the reference model", (Line("kl", "KL"),)),
    Plot("answer_length", "Length of generated answers", ANSWER_LENGTH, unit="tokens"),
    Plot("equal_rewards", "Prompts with equal rewards", (Line("frac_reward_zero_std", "share"),)),
    Plot("learning_rate", "Learning rate", (Line("learning_rate", "learning rate"),)),
    Plot("grad_norm", "Gradient norm", (Line("grad_norm", "gradient norm"),)),
    Plot("step_time", "Time per step", STEP_TIME, unit="seconds", starts_at_zero=True),
    Plot("rank_time", "Time per step, by process", RANK_TIME, unit="seconds", starts_at_zero=True),
    Plot("speed", "Speed", (Line("tokens_per_second", "tokens/s"),), unit="tokens/s"),
)
PLOTS: Mapping[str, Plot] = {plot.id: plot for plot in _ALL}


FRONT_ROW = ("loss", "checks", "memory")
"""Plots in the front row, if the run has such metrics. The others are under More plots."""
COMPARISON = Plot("comparison", "Loss of the compared runs", ())
RUN_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
"""For compared runs. Paul Tol's bright palette."""


def figures(run: Run | None, compared: Sequence[Run] = ()) -> str:
    """Return every plot with data as JSON, for ui/plots.js: {plot id: {data, layout}}."""
    drawn: dict[str, go.Figure] = {}
    if run is not None:
        known = run.curves().keys()
        for plot in PLOTS.values():
            if any(line.key in known for line in lines_of(plot, known)):
                drawn[plot.id] = figure(plot, run)
    if compared:
        drawn[COMPARISON.id] = comparison(compared)
    texts = [f'"{name}": {each.to_json()}' for name, each in drawn.items()]
    return f"{{{', '.join(texts)}}}"


def lines_of(plot: Plot, known: Collection[str]) -> tuple[Line, ...]:
    """Return the lines of a plot. `known` are the metrics of a run: each suite has its own."""
    if plot.id != "checks":
        return plot.lines
    usual = [line.key for line in plot.lines]
    others = [key for key in known if key.startswith(CHECK_PREFIX) and key not in usual]
    lines = [*plot.lines]
    for place, key in enumerate(sorted(others)):
        colour = OTHER_CHECKS[place % len(OTHER_CHECKS)]
        lines.append(Line(key, escape(key.removeprefix(CHECK_PREFIX)), colour, markers=True))
    return tuple(lines)


def figure(plot: Plot, run: Run) -> go.Figure:
    """Return a plot of a run. Its `uirevision` is the run, so that new points keep the zoom."""
    drawn = empty(plot.id, run.id)
    curves = run.curves()
    lines = lines_of(plot, curves.keys())
    for line in lines:
        if curve := curves.get(line.key):
            values = curve.values / plot.scale
            if line.smoothing:
                values = _smooth(values, line.smoothing)
            drawn.add_trace(_scatter(line, curve.steps, values))
    if resumed := curves.get("resumed_from"):
        drawn.add_trace(_resumes(resumed.values))
    if plot.id == "memory":
        _add_memory_levels(drawn, run)
    if run.best and any(line.key == run.best.metric for line in lines):
        drawn.add_trace(_best_point(run.best.step, run.best.value))
    return drawn


def comparison(compared: Sequence[Run]) -> go.Figure:
    """Return the smoothed losses of several runs in one plot."""
    drawn = empty(COMPARISON.id, " ".join(run.id for run in compared))
    for number, run in enumerate(compared):
        if curve := run.curves().get("loss"):
            colour = RUN_COLOURS[number % len(RUN_COLOURS)]
            dash = "solid" if number < len(RUN_COLOURS) else "dash"
            values = _smooth(curve.values, LOSS_SMOOTHING)
            drawn.add_trace(
                _scatter(Line("loss", run.name, colour, dash=dash), curve.steps, values)
            )
    return drawn


def empty(name: str, revision: str = "none") -> go.Figure:
    """Return a plot without lines."""
    plot = PLOTS.get(name, COMPARISON)
    title = f"{plot.title}, {plot.unit}" if plot.unit else plot.title
    grid = "rgba(128,128,128,0.15)"
    transparent = "rgba(0,0,0,0)"
    # One dict for the constructor: update_layout takes ten times as long.
    layout = {
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
        # Of the lines that mark a resume, from the lower edge to the upper one
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        # Below the plot: a phone has no room beside the title.
        "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        "modebar": {"bgcolor": transparent, "remove": HIDDEN_BUTTONS},
        "paper_bgcolor": transparent,
        "plot_bgcolor": transparent,
        "font": {"family": "inherit", "color": "#808890", "size": 12},
        "hovermode": "x unified",
        "showlegend": len(plot.lines) > 1 or plot is COMPARISON,
    }
    return go.Figure(layout=layout)


def _scatter(line: Line, steps: Floats, values: Floats) -> go.Scatter:
    has_markers = line.markers or len(steps) == 1
    return go.Scatter(
        x=steps.tolist(),
        y=values.tolist(),
        name=line.name,
        mode="lines+markers" if has_markers else "lines",
        line={"color": line.colour, "width": line.width, "dash": line.dash},
        hovertemplate="%{y:.4g}",
    )


def _best_point(step: int, value: float) -> go.Scatter:
    """Return a star at the best evaluation, named in the legend."""
    marker = {"symbol": "star", "size": 13, "color": RED, "line": {"width": 1, "color": "white"}}
    name = f"best at step {step:,}"
    return go.Scatter(
        x=[step], y=[value], name=name, mode="markers", marker=marker, hoverinfo="skip"
    )


def _resumes(steps: Floats) -> go.Scatter:
    """Return a dotted vertical line at each step from which a run was resumed, all in one trace."""
    x: list[float | None] = []
    for step in np.unique(steps[np.isfinite(steps)]).tolist():
        x += [step, step, None]
    return go.Scatter(
        x=x,
        y=[0, 1, None] * (len(x) // 3),
        name="resumed",
        mode="lines",
        line={"color": GREY, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        yaxis="y2",
    )


def _smooth(values: Floats, decay: float) -> Floats:
    """Return an exponential mean, corrected for its start at zero (Kingma and Ba 2015, section 3).

    Gaps are skipped. The mean covers at most a sixth of the values: at the end of a short run it
    would otherwise still contain the start.
    """
    decay = min(decay, 1 - 1 / max(1.0, len(values) / 6))
    smoothed = np.full(len(values), np.nan)
    mean = weight = 0.0
    for index, value in enumerate(values):
        if np.isfinite(value):
            mean = decay * mean + (1 - decay) * float(value)
            weight = decay * weight + (1 - decay)
            smoothed[index] = mean / weight
    return smoothed


def _add_memory_levels(drawn: go.Figure, run: Run) -> None:
    """Add the prediction of each attempt, and the capacity of the card if it is near enough to
    matter."""
    predicted = run.predicted_bytes or 0
    capacity = run.status.device_capacity_bytes
    for span in run.estimates():
        end = run.step if span.last_step is None else span.last_step
        total = span.prediction.total_with(run.status.baseline_bytes)
        if not total:
            continue
        name, ends = f"predicted: {memory(total)}", WHOLE_WIDTH
        if span.last_step is not None:
            name += f" until step {span.last_step:,.0f}"
        if span.last_step is not None or span.after_step:
            ends = {"xref": "x", "x0": span.after_step, "x1": max(end, span.after_step)}
        _add_level(drawn, total, name, (GREEN, "dash"), ends)
    if run.peak_bytes:
        _add_level(drawn, run.peak_bytes, f"peak: {peak_memory(run)}", (PURPLE, "dot"))
    if capacity and capacity < 3 * max(predicted, 1):
        _add_level(drawn, capacity, f"card: {memory(capacity)}", (RED, "solid"))


def _add_level(
    drawn: go.Figure,
    num_bytes: int,
    name: str,
    look: tuple[str, str],
    ends: Mapping[str, object] = WHOLE_WIDTH,
) -> None:
    """Add a horizontal line of a colour and a dash between two ends. Its name is in the legend,
    where it cannot cover another."""
    level = num_bytes / 2**30
    colour, dash = look
    line = {"color": colour, "width": 1.5, "dash": dash}
    height = {"y0": level, "y1": level}
    drawn.add_shape(type="line", **ends, **height, line=line, name=name, showlegend=True)
