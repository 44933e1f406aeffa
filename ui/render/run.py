"""One run as HTML: header, tiles, memory table, answers, files. Escapes text of users."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from core.advise import Advice
from core.runs import Run
from core.runs.past_runs import LARGE_ERROR, prediction_errors
from core.runs.results import UNDO as ORIGINAL
from core.runs.results import ListedCheckpoint
from core.runs.sentences import (
    best_sentence,
    evaluation_words,
    loss_note,
    memory_rows,
    seconds_left,
    state_sentence,
)
from core.wording import MEASURED, duration, memory
from ui.render import notice, table
from ui.render.checks import results

SIGNS: Mapping[str, str] = {
    "queued": "○",
    "starting": "…",
    "running": "▶",
    "stopping": "…",
    "finished": "✓",
    "stopped": "■",
    "failed": "✗",
    "interrupted": "✗",
}
"""Sign of each state, so that nothing depends on colour alone."""
NO_VALUE = "–"
RUN_REMOVED = "This run is not there any more: it was deleted in another tab or in the terminal."
BUNDLE_LABEL = "Download bundle"
USE, UNDO = "Use this one", "Use the result of the training again"
"""Buttons in the table of checkpoints."""


def active_label(run: Run) -> str:
    """Return the label of the running run in the top line: its name and its step."""
    label = f"{SIGNS[run.state]} {run.name}"
    if run.max_steps:
        label += f" · {run.step:,} / {run.max_steps:,}"
    return label


def share_done(run: Run) -> float:
    """Return the share of the steps that is done, from 0 to 1."""
    return run.step / run.max_steps if run.max_steps else 0.0


def no_run() -> str:
    """Return what stands in place of a run."""
    said = "No runs yet. Press <b>Start training</b> on the Train tab."
    return f'<div class="run empty"><p>{said}</p></div>'


def removed_run() -> str:
    """Return what stands in place of a run that was deleted while it was shown."""
    return f'<div class="run empty"><p>{RUN_REMOVED}</p></div>'


def run_header(run: Run, advice: Sequence[Advice] = (), stall_warning: str | None = None) -> str:
    """Return title, state, progress with the time left, warnings and advice."""
    percent = 100 * share_done(run)
    progress = []
    if run.max_steps:
        progress.append(f"{percent:.0f} %")
    left = seconds_left(run)
    if left is not None:
        progress.append(f"about {duration(left)} left")
    if best := best_sentence(run):
        progress.append(best.removesuffix("."))
    warnings = [*run.status.notes, run.status.warning or "", stall_warning or ""]
    notices = "".join(notice(each, "warned") for each in warnings)
    return (
        f'<div class="run {run.state}"><h2>{escape(run.name)}</h2>'
        f'<p class="state">{escape(state_sentence(run))}</p>'
        '<div class="progress" role="progressbar" aria-label="Steps done" '
        f'aria-valuenow="{percent:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><span style="width:{percent:.2f}%"></span></div>'
        f'<p class="facts">{" · ".join(progress)}</p>'
        f"{notices}{_advice(advice)}</div>"
    )


def _advice(advice: Sequence[Advice]) -> str:
    if not advice:
        return ""
    items = "".join(f"<li><b>{escape(each.title)}.</b> {escape(each.why)}</li>" for each in advice)
    return f'<ul class="advice" aria-label="What would help">{items}</ul>'


def tiles(run: Run) -> str:
    """Return four numbers: loss, speed, peak memory, and time with its cost."""
    cells = _loss_tile(run) + _speed_tile(run) + _memory_tile(run) + _time_tile(run)
    note = loss_note(run.job.stage)
    said = f'<p class="facts">{escape(note)}</p>' if note else ""
    return f'<div class="tiles">{cells}</div>{said}'


def _tile(name: str, value: str, more: str) -> str:
    return f"<div><span>{name}</span><b>{escape(value)}</b><i>{escape(more)}</i></div>"


def _loss_tile(run: Run) -> str:
    """Return the loss, with that of the last evaluation and its perplexity."""
    curves = run.curves()
    loss = curves.get("loss")
    if loss is None:
        return _tile("Loss", NO_VALUE, "")
    more = [f"from {_loss(loss.values[0])}"]
    for key, name in (("eval_loss", "eval"), ("eval_perplexity", "perplexity")):
        if key in curves:
            more.append(f"{name} {curves[key].values[-1]:.4g}")
    return _tile("Loss", _loss(loss.values[-1]), " · ".join(more))


def _loss(value: float) -> str:
    """0.0426, 3.1e-05, 4.2e+05"""
    return f"{value:.2g}" if not 0.001 <= abs(value) < 10_000 else f"{value:.4f}"


def _speed_tile(run: Run) -> str:
    """Return the speed; on this machine's card also against the forecast, and the MFU."""
    speed = run.curves().get("tokens_per_second")
    if speed is None:
        return _tile("Speed", NO_VALUE, "tokens/s")
    more = "tokens/s"
    span = run.estimates()[-1]
    predicted = span.prediction
    values = speed.values[speed.steps > span.after_step]
    measured = float(np.nanmedian(values)) if len(values) else 0.0
    forecast, peak = predicted.tokens_per_second, predicted.peak_tokens_per_second
    if measured and forecast and run.job.gpu == "local":
        more += f", {measured / forecast - 1:+.0%} of forecast"
        if peak:
            more += f" · MFU {measured / peak:.0%}"
    return _tile("Speed", f"{speed.values[-1]:,.0f}", more)


def _memory_tile(run: Run) -> str:
    """Return the measured peak with what it counts, and the predicted one of the same kind."""
    name = f"Peak memory, {run.peak_kind}"
    if not run.peak_bytes:
        return _tile("Peak memory", NO_VALUE, run.status.device or "")
    more = [run.status.device or ""]
    predicted = run.prediction().peak_allocated_bytes
    if run.peak_kind == "process":
        predicted = run.predicted_bytes
    if predicted:
        more.append(f"{memory(predicted)} predicted")
    return _tile(name, memory(run.peak_bytes), " · ".join(filter(None, more)))


def _time_tile(run: Run) -> str:
    seconds = duration(run.seconds) if run.status.updated else NO_VALUE
    more = f"{run.job.stage} · {run.job.method}"
    if run.usd:
        more += f" · ${run.usd:,.2f}"
    return _tile("Time", seconds, more)


def memory_table(run: Run) -> str:
    """Return the predicted and the measured peak of each phase."""
    rows = memory_rows(run)
    if not rows:
        return ""
    errors = prediction_errors(run)
    heads = ("predicted", "measured", "difference")
    title = "<h3>Predicted and measured memory</h3>"
    note = f"<p>{_memory_note(errors)}</p>"
    return f'<div class="measured">{title}{table(rows, heads)}{note}</div>'


def _memory_note(errors: Mapping[str, float]) -> str:
    if "process" in errors:
        return (
            "Without a GPU the process counts, with Python and its libraries: the same number as "
            "in the verdict before the start."
        )
    kind = "Phases count what PyTorch has allocated."
    large = [MEASURED[name].lower() for name, error in errors.items() if abs(error) > LARGE_ERROR]
    if not large:
        return f"{kind} Every peak is within {LARGE_ERROR:.0%} of the prediction."
    reason = "Rows shorter than max_length need less memory than predicted."
    return f"{kind} Off by more than {LARGE_ERROR:.0%}: {', '.join(large)}. {reason}"


def answers(run: Run) -> str:
    """Return the answers to the same prompts before, during and after training."""
    samples = run.samples()
    blocks = ""
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        lines = ""
        for sample in samples:
            if sample.prompt == prompt:
                label = f"step {sample.step:,}" if sample.step else "before"
                lines += f"<dt>{label}</dt><dd>{escape(sample.answer)}</dd>"
        blocks += f"<div><p>{escape(prompt)}</p><dl>{lines}</dl></div>"
    return f'<div class="answers"><h3>Before and after</h3>{blocks}</div>' if blocks else ""


def checks(run: Run) -> str:
    """Return what suites have found of the result."""
    return results(run)


def what_next(run: Run) -> str:
    """Return where the result is, or how to continue."""
    if run.state == "finished":
        kind = "adapter" if run.job.trains_adapter else "model"
        said, place = f"The {kind} with its tokenizer and chat template", run.folder / "output"
    elif run.state in ("stopped", "failed", "interrupted"):
        hope = "There is no checkpoint to resume from"
        if run.has_checkpoint:
            hope = "Resume continues from the last checkpoint"
        said, place = f"{hope}. All files", run.folder
    else:
        return ""
    return f'<p class="next">{said}: <code>{escape(str(place))}</code></p>'


def files(run: Run) -> str:
    """Return what a run keeps on the disk, and the link to its bundle."""
    rows = []
    for each in run.checkpoints:
        state = "" if each.is_complete else "incomplete, never used to resume"
        rows.append((f"checkpoint {each.step:,}", memory(each.num_bytes), state))
    skipped = "".join(f"<li>{escape(each)}</li>" for each in run.status.skipped_checkpoints)
    place = f"<p>{escape(str(run.folder))} · {memory(run.disk_bytes())}</p>"
    link = f'<a href="bundle/{run.id}.zip" download>{BUNDLE_LABEL}</a>'
    contents = "job, training program, data and package versions, to repeat this run without Tailor"
    return (
        f'<div class="measured">{place}{table(rows)}<ul>{skipped}</ul>'
        f"<p>{link}: {contents}.</p></div>"
    )


def checkpoints(listed: Sequence[ListedCheckpoint], can_publish: bool, can_undo: bool) -> str:
    """Return the table. ui/history.js reports which button was pressed."""
    if not listed:
        return '<div class="measured checkpoints"><p>There are no checkpoints yet.</p></div>'
    heads = "".join(f"<th>{head}</th>" for head in ("step", "evaluation", "size", "", ""))
    rows = "".join(_checkpoint(each, can_publish) for each in listed)
    undo = ""
    if can_undo:
        undo = f'<p><button type="button" data-publish="{ORIGINAL}">{UNDO}</button></p>'
    rows_shown = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="measured checkpoints">{rows_shown}{undo}</div>'


def _checkpoint(each: ListedCheckpoint, can_publish: bool) -> str:
    marks = []
    if each.is_best:
        marks.append("★ best")
    if each.is_result:
        marks.append("the result")
    if not each.is_complete:
        marks.append("incomplete, never used")
    value = "–" if each.value is None else evaluation_words(each.metric, each.value)
    button = ""
    if can_publish and each.is_complete and not each.is_result:
        label = f"Use the checkpoint of step {each.step:,}"
        button = (
            f'<button type="button" data-publish="{each.step}" aria-label="{label}">{USE}</button>'
        )
    cells = (f"{each.step:,}", value, memory(each.num_bytes), escape(", ".join(marks)), button)
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr>{row}</tr>"
