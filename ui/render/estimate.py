"""The estimate panel as HTML: the bar, the verdict, the phases, the fixes, what fits where. Escapes all it is given."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from types import MappingProxyType

from core.advise import Cell, Fix, Plan
from core.device import DeviceReading
from core.job import SpecError
from core.memory import MemoryEstimate
from core.models import gpus
from core.training.contract.methods import METHODS
from core.wording import PHASES, memory, verdict_sentence
from ui.render import notice

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
LEAST_TAKEN_BYTES = 256 * 2**20
"""An idle card shows some for its driver and its screen."""
MOST_HOLDERS = 3
NAMES: Mapping[str, str] = {"cuda_context": "CUDA context"}
FIELD_NAMES: Mapping[str, str] = MappingProxyType({})
"""The fields by their own names, as in a job file."""


def estimate_panel(found: MemoryEstimate, card: DeviceReading | None = None) -> str:
    """The stacked bar against the card's capacity, the verdict, and every component by name.

    `card`: the one in this machine, if the job is for it: part of it may be taken.
    """
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
        f"{_verdict(verdict_sentence(found))}"
        f'<div class="bar" role="img" aria-label="{escape(verdict_sentence(found))}">{parts}'
        f'<em style="left:{limit:.3f}%"></em></div>'
        f"{_taken(found, card) if card else ''}"
        f'<ul class="parts">{items}</ul>{_phases(found)}{notice(found.why, "plain")}</div>'
    )


def _verdict(sentence: str) -> str:
    """The answer in a sentence; where the page is one column it is also at its lower edge, and leads here."""
    glance = f'<a class="glance" href="#estimate" aria-hidden="true" tabindex="-1">{escape(sentence)}</a>'
    return f'<p class="verdict">{escape(sentence)}</p>{glance}'


def _taken(found: MemoryEstimate, card: DeviceReading) -> str:
    """What other programs hold of this machine's card, and whether the rest is enough."""
    if card.used_bytes < LEAST_TAKEN_BYTES:
        return ""
    known = [each for each in card.processes if each.used_bytes][:MOST_HOLDERS]
    holders = ", ".join(
        f"{each.name or 'process'} {each.pid} {memory(each.used_bytes or 0)}" for each in known
    )
    says = f"{memory(card.free_bytes)} of it are free now" + (f"; {holders}" if holders else "")
    if found.total_bytes <= card.free_bytes or found.verdict == "does_not_fit":
        return notice(f"{says}.", "plain")
    return notice(f"{says}. That is too little: end what holds the rest, or wait for it.", "warned")


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
    title = "To make it fit" if fixes[0].saves == "memory" else "There is room"
    reasons = "".join(f"<li><b>{escape(fix.title)}</b> {escape(fix.why)}</li>" for fix in fixes)
    return f'<details class="fixes"><summary>{title}</summary><ul>{reasons}</ul></details>'


def choices(plan: Plan, by_hand: Collection[str]) -> str:
    """What the profile chose, with the reasons, and what a person has set instead."""
    if not plan.choices:
        return ""
    lines = "".join(
        f"<li><code>{escape(each.field)}</code> <b>{escape(str(each.value))}</b> {escape(each.reason)}</li>"
        for each in plan.choices
        if each.field not in by_hand
    )
    kept = f" Set by hand, and left so: {', '.join(sorted(by_hand))}." if by_hand else ""
    summary = "<summary>What was chosen, and why</summary>"
    return f'<details class="fixes">{summary}<ul>{lines}</ul>{notice(kept, "plain")}</details>'


def unknown_architecture(title: str) -> str:
    """In place of the estimate: this model has none of its own, but it can be traced."""
    said = f"{title}: an architecture that is measured by tracing one step of it, not by formula."
    return f'<div class="estimate traced">{_verdict("Traced, not estimated")}{notice(said, "plain")}</div>'


def what_fits(cells: Sequence[Cell], model: str, max_length: int) -> str:
    """Methods down, cards across: the largest batch of full-length rows."""
    cards = tuple(dict.fromkeys(cell.gpu for cell in cells))
    heads = "".join(
        f"<th>{escape(gpus()[card].name.removeprefix('GeForce '))}</th>" for card in cards
    )
    lines = "".join(
        f"<tr><th>{escape(METHODS[method].title)}</th>"
        + "".join(f"<td>{cell.batch or '–'}</td>" for cell in cells if cell.method == method)
        + "</tr>"
        for method in dict.fromkeys(cell.method for cell in cells)
    )
    note = f"{model}: the largest batch size of rows of {max_length:,} tokens, with gradient checkpointing."
    return f'<div class="measured scrolls"><p>{escape(note)}</p><table><tr><th></th>{heads}</tr>{lines}</table></div>'


def refusal(error: SpecError, labels: Mapping[str, str] = FIELD_NAMES) -> str:
    """Why there is no estimate: every problem with its remedy. `labels` is what the reader knows the fields by."""
    items = "".join(
        f"<li><b>{escape(labels.get(each.field, each.field))}</b> {escape(each.problem)}. "
        f"<span>{escape(_sentence(each.fix))}</span></li>"
        for each in error.problems
    )
    return (
        f'<div class="estimate refused">{_verdict("This job cannot run yet")}<ul>{items}</ul></div>'
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('?', '.')) else '.'}"
