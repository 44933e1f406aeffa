"""Core objects as HTML and plotly figures. Escapes all text of people's; holds the PLOTS table and the colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from core import runs
from core.dataset import DatasetReport
from core.fit import Cell, Fix
from core.job import SpecError
from core.memory import MemoryEstimate
from core.methods import METHODS
from core.presets import gpus
from core.runs import Run
from ui.words import (
    LARGE_MISS,
    PHASES,
    duration,
    elapsed_seconds,
    gib,
    memory,
    memory_differences,
    memory_rows,
    seconds_left,
    state_sentence,
    verdict_sentence,
)

COLOURS: Mapping[str, str] = {
    "weights": "#4477aa",
    "quantization_state": "#88aacc",
    "adapters": "#66ccee",
    "gradients": "#228833",
    "optimizer_states": "#ccbb44",
    "activations": "#ee6677",
    "logits": "#aa3377",
    "temporary": "#cc8866",
    "cuda_context": "#999999",
    "fragmentation": "#bbbbbb",
}
"""One colour per component, the same everywhere. Base: Paul Tol's bright palette, safe for colour-blind readers."""
OTHER_COLOUR = "#777777"
NAMES: Mapping[str, str] = {"cuda_context": "CUDA context"}
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


def estimate_panel(found: MemoryEstimate) -> str:
    """The stacked bar against the card's capacity, the verdict, and every component by name."""
    scale = 100 / max(found.total_bytes, found.capacity_bytes)
    parts = "".join(
        f'<span style="width:{part.bytes * scale:.3f}%;background:{_colour(part.name)}" '
        f'title="{escape(_name(part.name))}: {memory(part.bytes)}. {escape(part.note)}"></span>'
        for part in found.components
    )
    limit = found.capacity_bytes * scale
    items = "".join(
        f'<li title="{escape(part.note)}"><i style="background:{_colour(part.name)}"></i>'
        f"<span>{escape(_name(part.name))}</span><b>{memory(part.bytes)}</b></li>"
        for part in sorted(found.components, key=lambda part: -part.bytes)
    )
    return (
        f'<div class="estimate {found.verdict}">'
        f'<p class="verdict">{escape(verdict_sentence(found))}</p>'
        f'<div class="bar" role="img" aria-label="{escape(verdict_sentence(found))}">{parts}'
        f'<em style="left:{limit:.3f}%"></em></div>'
        f'<ul class="parts">{items}</ul>{_phases(found)}</div>'
    )


def _phases(found: MemoryEstimate) -> str:
    most = max(found.phases.values(), default=1)
    rows = "".join(
        f'<li class="{"binding" if name == found.binding_phase else ""}"><span>{PHASES[name]}</span>'
        f'<u><s style="width:{100 * size / most:.2f}%"></s></u><b>{memory(size)}</b></li>'
        for name, size in found.phases.items()
        if size
    )
    return f'<ul class="phases" aria-label="Peak of each phase">{rows}</ul>'


def _name(component: str) -> str:
    return NAMES.get(component, component.replace("_", " ").capitalize())


def _colour(component: str) -> str:
    return COLOURS.get(component, OTHER_COLOUR)


def fixes_title(fixes: Sequence[Fix]) -> str:
    """What the buttons below do, and why each: what makes a job fit, or what would use the room there is."""
    if not fixes:
        return ""
    title = "To make it fit" if any(fix.saves_bytes > 0 for fix in fixes) else "There is room"
    reasons = "".join(f"<li><b>{escape(fix.title)}</b> {escape(fix.why)}</li>" for fix in fixes)
    return f'<details class="fixes"><summary>{title}</summary><ul>{reasons}</ul></details>'


def what_fits(cells: Sequence[Cell], max_length: int) -> str:
    """Methods down, cards across: the largest batch of full-length rows."""
    cards = tuple(dict.fromkeys(cell.gpu for cell in cells))
    heads = "".join(f"<th>{escape(gpus()[card].name.removeprefix('GeForce '))}</th>" for card in cards)
    lines = "".join(
        f"<tr><th>{escape(METHODS[method].title)}</th>"
        + "".join(f"<td>{cell.batch or '–'}</td>" for cell in cells if cell.method == method)
        + "</tr>"
        for method in dict.fromkeys(cell.method for cell in cells)
    )
    note = f"Largest batch size of rows of {max_length:,} tokens, with gradient checkpointing."
    return f'<div class="measured scrolls"><p>{note}</p><table><tr><th></th>{heads}</tr>{lines}</table></div>'


def refusal(error: SpecError) -> str:
    """Why there is no estimate: every problem with its remedy."""
    items = "".join(
        f"<li><b>{escape(each.field)}</b> {escape(each.problem)}. <span>{escape(_sentence(each.fix))}</span></li>"
        for each in error.problems
    )
    return f'<div class="estimate refused"><p class="verdict">This job cannot run yet</p><ul>{items}</ul></div>'


def notice(text: str, kind: str = "good") -> str:
    """One line under a control: good, bad or plain."""
    return f'<p class="notice {kind}">{escape(text)}</p>' if text else ""


def run_label(run: Run) -> str:
    """A run in the picker: a sign that does not depend on colour, its name, how far it is."""
    sign = {"running": "▶", "finished": "✓", "stopped": "■", "failed": "✗", "interrupted": "✗"}.get(run.state, "…")
    progress = f" · {run.step:,} / {run.max_steps:,}" if run.max_steps else ""
    return f"{sign} {run.id} · {run.state}{progress}"


def run_header(run: Run | None) -> str:
    """Title, state in a sentence, and how far it is with the time left."""
    if run is None:
        return '<div class="run empty"><p>No runs yet. Press <b>Start training</b> on the Train tab.</p></div>'
    share = 100 * run.step / run.max_steps if run.max_steps else 0
    left = seconds_left(run)
    aside = f"{share:.0f} %" + (f" · about {duration(left)} left" if left is not None else "")
    return (
        f'<div class="run {run.state}"><h2>{escape(run.id)}</h2>'
        f'<p class="state">{escape(state_sentence(run))}</p>'
        f'<div class="progress" role="progressbar" aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<span style="width:{share:.2f}%"></span></div><p class="aside">{aside}</p></div>'
    )


def tiles(run: Run | None) -> str:
    """Four numbers: loss, speed, peak memory against the prediction, time."""
    if run is None:
        return ""
    rows = runs.metrics(run.folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    speed = next((row["tokens_per_second"] for row in reversed(rows) if "tokens_per_second" in row), None)
    peak = max((row.get("memory_peak_bytes", row.get("device_used_bytes", 0)) for row in rows), default=0)
    facts = (
        ("Loss", f"{losses[-1]:.4f}" if losses else "–", f"from {losses[0]:.4f}" if losses else ""),
        ("Speed", f"{speed:,.0f}" if speed else "–", "tokens/s"),
        ("Peak memory", memory(peak) if peak else "–", str(run.status.get("device", ""))),
        ("Time", duration(elapsed_seconds(run)) if run.status else "–", run.job.method),
    )
    cells = "".join(
        f"<div><span>{name}</span><b>{escape(value)}</b><i>{escape(more)}</i></div>" for name, value, more in facts
    )
    return f'<div class="tiles">{cells}</div>'


def memory_table(run: Run | None) -> str:
    """Predicted against measured peak of each phase."""
    rows = memory_rows(run) if run else []
    if not rows:
        return ""
    cells = "".join(
        f"<tr><th>{phase}</th>" + "".join(f"<td>{each}</td>" for each in rest) + "</tr>" for phase, *rest in rows
    )
    differences = memory_differences(run) if run else {}
    heads = f"<tr><th></th><th>predicted GiB</th><th>measured GiB</th><th>{'off by' if differences else ''}</th></tr>"
    note = _memory_note(differences)
    return f'<div class="measured"><h3>Predicted against measured</h3><table>{heads}{cells}</table><p>{note}</p></div>'


def _memory_note(differences: Mapping[str, float]) -> str:
    if not differences:
        return "On a CPU the growth of the whole process is measured, not the tensors alone."
    missed = [PHASES[phase].lower() for phase, share in differences.items() if abs(share) > LARGE_MISS]
    if not missed:
        return f"Every phase is within {LARGE_MISS:.0%} of what was measured."
    reason = "Rows shorter than max_length take less than was predicted."
    return f"Off by more than {LARGE_MISS:.0%}: {', '.join(missed)}. {reason}"


def answers(run: Run | None) -> str:
    """The same questions before and after."""
    found = runs.samples(run.folder) if run else ()
    blocks = ""
    for prompt in dict.fromkeys(sample["prompt"] for sample in found):
        lines = "".join(
            f"<dt>{_moment(sample['step'])}</dt><dd>{escape(str(sample['answer']))}</dd>"
            for sample in found
            if sample["prompt"] == prompt
        )
        blocks += f"<div><p>{escape(str(prompt))}</p><dl>{lines}</dl></div>"
    return f'<div class="answers"><h3>Before and after</h3>{blocks}</div>' if blocks else ""


def _moment(step: object) -> str:
    return "before" if step == 0 else f"step {escape(str(step))}"


def what_next(run: Run | None) -> str:
    """Where the result is, or how to go on."""
    if run is None:
        return ""
    if run.state == "finished":
        kind = "adapter" if run.job.trains_adapter else "model"
        place = escape(str(run.folder / "output"))
        return f'<p class="next">The {kind}, its tokenizer and template: <code>{place}</code></p>'
    if run.state in ("stopped", "failed", "interrupted"):
        is_kept = runs.has_checkpoint(run.folder)
        hope = "Resume goes on from the last checkpoint." if is_kept else "There is no checkpoint to go on from."
        return f'<p class="next">{hope} Everything it made: <code>{escape(str(run.folder))}</code></p>'
    return ""


def top_line(device: str) -> str:
    """The name, and what this machine has."""
    return f'<div class="top"><h1>Tailor</h1><span class="chip">{escape(device)}</span></div>'


def data_report(report: DatasetReport) -> str:
    """One line about a dataset; behind it why it was taken for what it is, and its problems and warnings by line."""
    listed = "".join(f"<li>{escape(str(problem))}</li>" for problem in report.problems)
    listed += f"<li>and {unlisted:,} more</li>" if (unlisted := report.num_problems - len(report.problems)) else ""
    warned = "".join(f'<li class="warned">{escape(str(warning))}</li>' for warning in report.warnings)
    facts = "".join(f'<li class="fact">{escape(fact)}</li>' for fact in (report.evidence, *report.notes) if fact)
    kind = "good" if report.is_usable else "bad"
    summary = f"<summary>{escape(report.summary())}</summary>"
    return f'<details class="notice {kind}">{summary}<ul>{listed}{warned}{facts}</ul></details>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
