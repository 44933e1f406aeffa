"""Estimate panel as HTML: bar, verdict, phases, fixes, plan, what fits where. Escapes all text."""

from collections.abc import Collection, Mapping, Sequence
from html import escape

from core.advise import Fix, Plan
from core.advise.batch import Cell
from core.device import DeviceReading
from core.job import SpecError
from core.memory import MemoryEstimate
from core.models import gpus
from core.training.contract.methods import METHODS
from core.wording import (
    COMPONENT_COLOURS,
    PHASE_TITLES,
    MemoryPart,
    memory,
    memory_parts,
    verdict_sentence,
)
from ui.render import notice, table

MIN_USED_BYTES = 256 * 2**20
"""An idle card shows some use, for its driver and a screen."""
MAX_PROCESSES = 3
"""Of those that use the card: so many are named."""


def estimate_panel(
    estimate: MemoryEstimate,
    cards: Sequence[DeviceReading] = (),
    num_devices: int = 1,
    sentences: Sequence[str] = (),
) -> str:
    """Return the bar against the card's capacity, the verdict, and every component by name.

    `cards` are those in this machine, if the job is for them: other programs may use a part.
    Several devices hold the same, so that one bar stands for each. `sentences` are about them.
    """
    sentence = verdict_sentence(estimate, num_devices)
    notices = _of_several(num_devices, sentences)
    for card in cards:
        notices += _used_by_others(estimate, card, len(cards))
    return (
        f'<div class="estimate {estimate.verdict}">{_verdict(sentence)}'
        f'<div class="bar" role="img" aria-label="{escape(sentence)}">{_bar(estimate)}</div>'
        f"{notices}{_legend(estimate)}"
        f"{_phases(estimate)}{notice(estimate.why, 'plain')}</div>"
    )


def _of_several(num_devices: int, sentences: Sequence[str]) -> str:
    """Return what the bar stands for if there are several devices, and what is said of them."""
    if num_devices == 1:
        return ""
    said = f"The bar is that of each of {num_devices} devices: all hold the same."
    return "".join(notice(each, "plain") for each in (said, *sentences))


def _bar(estimate: MemoryEstimate) -> str:
    """Return a segment for each part, and a mark at the capacity. What may leave the card comes
    last and is hatched, so that it lies beyond the mark if there is not enough room."""
    scale = 100 / max(estimate.total_bytes, estimate.capacity_bytes)
    segments = ""
    for part in memory_parts(estimate):
        style = (
            f"width:{part.bytes * scale:.3f}%;background-color:{COMPONENT_COLOURS[part.component]}"
        )
        title = f"{part.title}: {memory(part.bytes)}. {part.note}"
        segments += f'<span{_hatched(part)} style="{style}" title="{escape(title)}"></span>'
    return segments + f'<em style="left:{estimate.capacity_bytes * scale:.3f}%"></em>'


def _legend(estimate: MemoryEstimate) -> str:
    items = ""
    for part in sorted(memory_parts(estimate), key=lambda part: -part.bytes):
        colour = (
            f'<i{_hatched(part)} style="background-color:{COMPONENT_COLOURS[part.component]}"></i>'
        )
        size = f"<span>{part.title}</span><b>{memory(part.bytes)}</b>"
        items += f'<li title="{escape(part.note)}">{colour}{size}</li>'
    return f'<ul class="parts">{items}</ul>'


def _hatched(part: MemoryPart) -> str:
    return ' class="paged"' if part.may_leave_card else ""


def _verdict(sentence: str) -> str:
    """Return the verdict, and once more for a phone, where it sticks to the lower edge."""
    text = escape(sentence)
    return (
        f'<p class="verdict">{text}</p>'
        f'<a class="glance" href="#estimate" aria-hidden="true" tabindex="-1">{text}</a>'
    )


def _used_by_others(estimate: MemoryEstimate, card: DeviceReading, num_cards: int) -> str:
    """Return what other programs use of this machine's card, and whether the rest is enough."""
    if card.used_bytes < MIN_USED_BYTES:
        return ""
    place = f" on GPU {card.cuda_name}" if num_cards > 1 else ""
    said = f"{memory(card.free_bytes)} are free now{place}"
    users = [
        f"{each.name or 'process'} {each.pid} {memory(each.used_bytes)}"
        for each in card.processes
        if each.used_bytes
    ]
    if users:
        said += f"; {', '.join(users[:MAX_PROCESSES])}"
    if estimate.resident_bytes <= card.free_bytes or estimate.verdict == "does_not_fit":
        return notice(f"{said}.", "plain")
    return notice(f"{said}. That is too little: end the programs that use the rest.", "warned")


def _phases(estimate: MemoryEstimate) -> str:
    most = max(estimate.phases.values(), default=1)
    rows = ""
    for phase, size in estimate.phases.items():
        if size:
            kind = "binding" if phase == estimate.binding_phase else ""
            bar = f'<u><s style="width:{100 * size / most:.2f}%"></s></u>'
            title = f"<span>{PHASE_TITLES[phase]}</span>"
            rows += f'<li class="{kind}">{title}{bar}<b>{memory(size)}</b></li>'
    return f'<ul class="phases" aria-label="Peak of each phase">{rows}</ul>'


def fixes_title(fixes: Sequence[Fix]) -> str:
    """Return a heading for the fix buttons that opens to the reason for each."""
    if not fixes:
        return ""
    title = "Make it fit" if fixes[0].saves == "memory" else "Make it faster: there is room"
    reasons = "".join(f"<li><b>{escape(fix.title)}</b> {escape(fix.why)}</li>" for fix in fixes)
    return f'<details class="fixes"><summary>{title}</summary><ul>{reasons}</ul></details>'


def cures_title(number: int) -> str:
    """Return a heading for the buttons that cure a job which cannot run."""
    return notice("One click puts it right:", "plain") if number else ""


def choices(plan: Plan, set_by_user: Collection[str]) -> str:
    """Return what the profile chose and why, and what the user has set instead."""
    if not plan.choices:
        return ""
    lines = ""
    for each in plan.choices:
        if each.field not in set_by_user:
            choice = f"<code>{escape(each.field)}</code> <b>{escape(str(each.value))}</b>"
            lines += f"<li>{choice} {escape(each.reason)}</li>"
    kept = ""
    if set_by_user:
        kept = notice(f"Kept as you set them: {', '.join(sorted(set_by_user))}.", "plain")
    summary = "<summary>Chosen settings and why</summary>"
    return f'<details class="fixes">{summary}<ul>{lines}</ul>{kept}</details>'


def unknown_architecture(title: str) -> str:
    """Return the panel of a model that has no formula and is traced instead."""
    said = notice(f"{title} has no formula: one training step is traced instead.", "plain")
    return f'<div class="estimate traced">{_verdict("Traced, not estimated")}{said}</div>'


def what_fits(cells: Sequence[Cell], model: str, max_length: int) -> str:
    """Return a table of the largest batch size, methods down, GPUs across."""
    said = f"{model}: largest batch of {max_length:,}-token rows, with gradient checkpointing."
    one = [cell for cell in cells if cell.num_devices == 1]
    shown = f"<p>{escape(said)}</p>{_batches(one)}"
    several = [cell for cell in cells if cell.num_devices > 1]
    if several:
        said = "The model divided among several such GPUs (fsdp): largest batch on each."
        shown += f"<p>{said}</p>{_batches(several)}"
    return f'<div class="measured scrolls" tabindex="0">{shown}</div>'


def _batches(cells: Sequence[Cell]) -> str:
    """Return a table: a row for each method and number of GPUs, a column for each kind of GPU."""
    cards = dict.fromkeys(cell.gpu for cell in cells)
    names = [gpus()[card].name.removeprefix("GeForce ") for card in cards]
    rows: dict[str, list[object]] = {}
    for cell in sorted(cells, key=lambda each: list(METHODS).index(each.method)):
        title = METHODS[cell.method].title
        if cell.num_devices > 1:
            title += f" on {cell.num_devices}"
        rows.setdefault(title, []).append(cell.batch or "–")
    return table([(title, *batches) for title, batches in rows.items()], names)


def refusal(error: SpecError, labels: Mapping[str, str] | None = None) -> str:
    """Return every problem of a job and what to do. `labels` are the names of the fields here."""
    known = labels or {}
    items = ""
    for each in error.problems:
        label = escape(known.get(each.field, each.field))
        fix = f"<span>{escape(_sentence(each.fix))}</span>"
        items += f"<li><b>{label}</b> {escape(each.problem)}. {fix}</li>"
    verdict = _verdict("This job cannot run yet")
    return f'<div class="estimate refused">{verdict}<ul>{items}</ul></div>'


def _sentence(text: str) -> str:
    end = "" if text.endswith(("?", ".")) else "."
    return text[:1].upper() + text[1:] + end
