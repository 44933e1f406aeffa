"""Comparisons as HTML: estimates side by side, what a card can train, the report on some runs."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from core.after_training.compare import ModelOnCard, Variant
from core.after_training.compare.report import cautions, findings, html_of, summary_of_runs
from core.models import Gpu, models
from core.runs import Run
from core.training.contract.methods import METHODS
from core.wording import (
    MEASURED,
    count,
    memory,
    memory_parts,
    speed_sentence,
    verdict_sentence,
)
from ui.render import notice, table

MAX_MODELS = 40
NONE = "–"


def estimates(found: Sequence[Variant]) -> str:
    """Return verdict, time, memory by component and by phase of each way, side by side."""
    shown = [each for each in found if each.estimate]
    said = ""
    for each in found:
        if each.left_out:
            text = f"{each.point.label} is left out: {each.left_out}. What helps: {each.fix}."
            said += notice(text, "warned")
    if not shown:
        return said
    rows: list[tuple[str, ...]] = [("Memory", *map(_verdict, shown)), ("Time", *map(_time, shown))]
    parts, phases = [], []
    for each in shown:
        assert each.estimate
        parts.append({part.title: part.bytes for part in memory_parts(each.estimate)})
        phases.append({MEASURED[name]: size for name, size in each.estimate.phases.items()})
    for sizes, prefix in ((parts, ""), (phases, "Peak: ")):
        for title in dict.fromkeys(title for each in sizes for title in each):
            rows.append((prefix + title, *(_memory(each.get(title, 0)) for each in sizes)))
    grid = table(rows, [each.point.label for each in shown])
    return f'<div class="measured scrolls" tabindex="0">{grid}</div>{said}'


def _verdict(variant: Variant) -> str:
    assert variant.estimate
    assert variant.resolved
    return verdict_sentence(variant.estimate, variant.resolved.job.num_devices)


def _time(variant: Variant) -> str:
    return speed_sentence(variant.speed) if variant.speed else NONE


def _memory(num_bytes: int) -> str:
    return memory(num_bytes) if num_bytes else NONE


def models_of_card(found: Sequence[ModelOnCard], gpu: Gpu, stage: str, max_length: int) -> str:
    """Return a table of the presets that fit a card, the largest first."""
    num_models = len({each.model for each in found})
    said = f"{gpu.name}, {stage}, rows of {max_length:,} tokens: {num_models} of {len(models())} "
    said += "models fit. Largest batch, memory and speed:"
    rows = []
    for each in found[:MAX_MODELS]:
        model = models()[each.model]
        speed = NONE
        if each.tokens_per_second:
            speed = f"{each.tokens_per_second:,.0f} tokens/s"
        size = count(model.num_parameters)
        method = METHODS[each.method].title
        batch = each.per_device_train_batch_size
        rows.append((model.name, size, method, batch, memory(each.total_bytes), speed))
    more = ""
    if len(found) > MAX_MODELS:
        command = f"`python app.py models --gpu {gpu.id}`"
        more = notice(f"And {len(found) - MAX_MODELS} more: {command} lists them.", "plain")
    grid = table(rows, ("size", "method", "batch", "memory", "speed"))
    return f'<div class="measured scrolls" tabindex="0"><p>{escape(said)}</p>{grid}{more}</div>'


def report_on(runs: Sequence[Run]) -> str:
    """Return what some runs say and do not say, with the whole report to keep as a file."""
    if len(runs) < 2:
        return ""
    summary = summary_of_runs(runs)
    lines = "".join(f"<li>{escape(line)}</li>" for line in findings(summary))
    limits = "".join(f"<li>{escape(line)}</li>" for line in cautions(summary))
    data = b64encode(html_of(summary).encode()).decode()
    link = f'<a download="report.html" href="data:text/html;base64,{data}">Download the report</a>'
    return (
        f'<div class="report"><ul>{lines}</ul><details><summary>What must not be concluded'
        f"</summary><ul>{limits}</ul></details><p>{link}</p></div>"
    )
