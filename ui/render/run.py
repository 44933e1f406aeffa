"""One run as HTML: label, header, tiles, memory table, answers. Reads the run folder; escapes all text of people's."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from core import runs
from core.advise import Advice
from core.runs import Run
from core.wording import (
    LARGE_MISS,
    PHASES,
    duration,
    memory,
    memory_differences,
    memory_rows,
    seconds_left,
    state_sentence,
)
from ui.render import notice

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
"""A state as a sign, for which colour is only a second help."""


def live_label(run: Run) -> str:
    """The running run in the top line: its name, how far it is."""
    progress = f" · {run.step:,} / {run.max_steps:,}" if run.max_steps else ""
    return f"{SIGNS[run.state]} {run.name}{progress}"


def run_header(run: Run | None, helps: Sequence[Advice] = (), stalled: str | None = None) -> str:
    """Title, state in a sentence, how far it is with the time left, and what is worth knowing about it."""
    if run is None:
        return '<div class="run empty"><p>No runs yet. Press <b>Start training</b> on the Train tab.</p></div>'
    share = 100 * run.step / run.max_steps if run.max_steps else 0
    left = seconds_left(run)
    aside = f"{share:.0f} %" if run.max_steps else ""
    aside += f" · about {duration(left)} left" if left is not None else ""
    said = [
        *run.status.notes,
        run.status.warning or "",
        stalled or "",
    ]
    return (
        f'<div class="run {run.state}"><h2>{escape(run.name)}</h2>'
        f'<p class="state">{escape(state_sentence(run))}</p>'
        f'<div class="progress" role="progressbar" aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<span style="width:{share:.2f}%"></span></div><p class="aside">{aside}</p>'
        f"{''.join(notice(each, 'warned') for each in said)}{_what_helps(helps)}</div>"
    )


def _what_helps(helps: Sequence[Advice]) -> str:
    items = "".join(f"<li><b>{escape(each.title)}.</b> {escape(each.why)}</li>" for each in helps)
    return f'<ul class="helps" aria-label="What would help">{items}</ul>' if helps else ""


def tiles(run: Run | None) -> str:
    """Four numbers: loss, speed, peak memory against the prediction, time and what it cost."""
    if run is None:
        return ""
    curves = runs.read_curves(run.folder)
    loss, speed = curves.get("loss"), curves.get("tokens_per_second")
    peaks = curves.get("memory_peak_bytes") or curves.get("device_used_bytes")
    price = f" · ${run.usd:,.2f}" if run.usd else ""
    facts = (
        (
            "Loss",
            _loss(loss.values[-1]) if loss else "–",
            f"from {_loss(loss.values[0])}" if loss else "",
        ),
        (
            "Speed",
            f"{speed.values[-1]:,.0f}" if speed else "–",
            _rate(run, float(np.nanmedian(speed.values)) if speed else 0),
        ),
        (
            "Peak memory",
            memory(np.nanmax(peaks.values)) if peaks else "–",
            run.status.device or "",
        ),
        (
            "Time",
            duration(run.seconds) if run.status.updated else "–",
            f"{run.job.stage} · {run.job.method}{price}",
        ),
    )
    cells = "".join(
        f"<div><span>{name}</span><b>{escape(value)}</b><i>{escape(more)}</i></div>"
        for name, value, more in facts
    )
    return f'<div class="tiles">{cells}</div>'


def _loss(value: float) -> str:
    """0.0426, 3.1e-05"""
    return f"{value:.2g}" if abs(value) < 0.001 else f"{value:.4f}"


def _rate(run: Run, measured: float) -> str:
    """The unit of the speed; on the card that it was forecast for also how that came out, and how busy the card is."""
    foretold = runs.read_json(run.folder / "estimate.json")
    forecast, peak = (
        (foretold.get("speed") or {}).get("tokens_per_second"),
        foretold.get("peak_tokens_per_second"),
    )
    if not measured or run.job.gpu != "local" or not forecast:
        return "tokens/s"
    busy = f" · MFU {measured / peak:.0%}" if peak else ""
    return f"tokens/s, {measured / forecast - 1:+.0%} of forecast{busy}"


def memory_table(run: Run | None) -> str:
    """Predicted against measured peak of each phase."""
    rows = memory_rows(run) if run else []
    if not rows:
        return ""
    cells = "".join(
        f"<tr><th>{phase}</th>" + "".join(f"<td>{each}</td>" for each in rest) + "</tr>"
        for phase, *rest in rows
    )
    differences = memory_differences(run) if run else {}
    heads = f"<tr><th></th><th>predicted GiB</th><th>measured GiB</th><th>{'off by' if differences else ''}</th></tr>"
    note = _memory_note(differences)
    return f'<div class="measured"><h3>Predicted against measured</h3><table>{heads}{cells}</table><p>{note}</p></div>'


def _memory_note(differences: Mapping[str, float]) -> str:
    if not differences:
        return "On a CPU the growth of the whole process is measured, not the tensors alone."
    missed = [
        PHASES[phase].lower() for phase, share in differences.items() if abs(share) > LARGE_MISS
    ]
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
        hope = (
            "Resume goes on from the last checkpoint."
            if is_kept
            else "There is no checkpoint to go on from."
        )
        return (
            f'<p class="next">{hope} Everything it made: <code>{escape(str(run.folder))}</code></p>'
        )
    return ""


def files(run: Run | None) -> str:
    """What a run keeps on the disk, and the bundle that repeats it elsewhere."""
    if run is None:
        return ""
    kept = "".join(
        f"<tr><th>checkpoint {each.step:,}</th><td>{memory(each.num_bytes)}</td>"
        f"<td>{'' if each.is_complete else 'incomplete: never resumed from'}</td></tr>"
        for each in runs.checkpoints(run.folder)
    )
    skipped = "".join(f"<li>{escape(each)}</li>" for each in run.status.skipped_checkpoints)
    return (
        f'<div class="measured"><p>{escape(str(run.folder))} · {memory(runs.disk_bytes(run))}</p>'
        f"<table>{kept}</table>{f'<ul>{skipped}</ul>' if skipped else ''}"
        f'<p><a href="bundle/{run.id}.zip" download>Download the bundle</a>: job, program, data and package versions, '
        f"to repeat this run without Tailor.</p></div>"
    )
