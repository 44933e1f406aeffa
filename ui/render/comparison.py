"""Comparisons as HTML: estimates side by side, what a card can train, runs and their report."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from core.after_training.compare import Comparison, Variant
from core.after_training.compare.on_card import ModelOnCard
from core.after_training.compare.report import (
    RunFigures,
    Summary,
    cautions,
    findings,
    html_of,
    summary_of_runs,
)
from core.after_training.compare.variants import rows_of_other_cards
from core.dataset import counted
from core.models import Gpu, models
from core.runs import Run
from core.runs.sentences import check_words, state_sentence
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
from ui.render.run import SIGNS

MAX_MODELS = 40
MAX_SHOWN = 60
BEST = "★"
OTHER_SIGNS = {"left out": "–", "planned": "○", "deleted": "✗"}
"""Signs of runs that have no state of their own."""
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
    labels = [each.point.label for each in shown]
    grids = table(rows, labels)
    if len(shown) <= len(METHODS):
        grids += f"<p>On other cards:</p>{table(rows_of_other_cards(shown), labels)}"
    return f'<div class="measured scrolls" tabindex="0">{grids}</div>{said}'


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
    link = download(summary, "report.html")
    return (
        f'<div class="report"><ul>{lines}</ul><details><summary>What must not be concluded'
        f"</summary><ul>{limits}</ul></details><p>{link}</p></div>"
    )


def overview(comparison: Comparison, summary: Summary) -> str:
    """Return the question, how many runs have ended, and a line for each run."""
    shown = summary.runs[:MAX_SHOWN]
    rows = "".join(_row(each, summary) for each in shown)
    heads = "".join(f"<th>{head}</th>" for head in ("seed", "state", "loss", "evaluation loss", ""))
    more = ""
    if len(summary.runs) > len(shown):
        more = notice(f"And {len(summary.runs) - len(shown)} more: the report lists them.", "plain")
    return (
        f'<div class="comparison"><p class="question">{escape(comparison.question)}</p>'
        f"<p>{escape(progress(comparison, summary))}</p>"
        f'<div class="measured scrolls" tabindex="0"><table><tr><td></td>{heads}</tr>{rows}'
        f"</table></div>{more}{_link(comparison, summary)}</div>"
    )


def progress(comparison: Comparison, summary: Summary) -> str:
    """Return how many runs have ended, and what was not begun."""
    is_active = [bool(each.run and each.run.is_active) for each in summary.runs]
    num_planned = sum(each.state == "planned" for each in summary.runs)
    num_ended = len(summary.runs) - sum(is_active) - num_planned
    num_all = len(summary.runs) + comparison.num_missing
    verb = "has" if num_all == 1 else "have"
    said = f"{num_ended} of {counted(num_all, 'run')} {verb} ended."
    if num_all > num_ended and not comparison.is_open and not any(is_active):
        said += f" {num_all - num_ended} were not begun: Continue begins them."
    elif comparison.search and comparison.num_missing:
        said += " Optuna chooses each of the others from what those before it have shown."
    if comparison.has_checks and num_ended == num_all and comparison.is_open:
        num_finished = sum(each.state == "finished" for each in summary.runs)
        said += f" Checking what they have learnt and lost: {len(comparison.checked)} of "
        said += f"{num_finished} done."
    return f"{said} {comparison.note}".strip()


def label(figures: RunFigures) -> str:
    """Return what tells a run from the others of its comparison."""
    return f"{figures.trial.point.label}, seed {figures.trial.seed}"


def _row(each: RunFigures, summary: Summary) -> str:
    name = each.trial.point.label
    if summary.best is not None and each is summary.best.shown:
        name = f"{BEST} {name}"
    sign = SIGNS[each.run.state] if each.run else OTHER_SIGNS[each.state]
    cells = (
        str(each.trial.seed),
        f"{sign} {each.state}",
        _number(each.loss),
        _number(each.eval_loss),
        _remark(each),
    )
    inside = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr><th>{escape(name)}</th>{inside}</tr>"


def _remark(each: RunFigures) -> str:
    if each.trial.left_out:
        reason = each.trial.left_out
        return f"{reason[:1].upper()}{reason[1:]}. What helps: {each.trial.fix}."
    if each.run is not None and each.run.state not in ("finished", "queued"):
        return state_sentence(each.run)
    return check_words(each.run) if each.run else ""


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _link(comparison: Comparison, summary: Summary) -> str:
    """Return a link to the whole report, once it is closed."""
    if comparison.is_open or not any(each.run for each in summary.runs):
        return ""
    return f"<p>{download(summary, f'{comparison.id}-report.html')}</p>"


def download(summary: Summary, name: str) -> str:
    """Return a link to a report that the page holds already."""
    data = b64encode(html_of(summary).encode()).decode()
    name = escape(name)
    return f'<a download="{name}" href="data:text/html;base64,{data}">Download the report</a>'
