"""Estimates of a comparison, side by side. Prints; estimates nothing."""

from collections.abc import Sequence

from core.after_training.compare import Variant
from core.after_training.compare.variants import on_other_cards, rows_of_other_cards
from core.training.contract.methods import METHODS
from core.wording import (
    MEASURED,
    memory,
    memory_parts,
    rough_duration,
    speed_sentence,
    verdict_sentence,
)
from ui.terminal.printing import out, wide_table

NONE = "–"


def estimate_json(variant: Variant) -> dict[str, object]:
    """Return what is known of a run before it exists, as `compare --estimate-only --json` lists."""
    estimate, speed = variant.estimate, variant.speed
    state = "left out" if variant.left_out else "estimated"
    fields: dict[str, object] = {
        "id": None,
        "method": variant.point.method,
        "seed": variant.seed,
        "state": state,
        "label": variant.point.label,
        "settings": dict(variant.point.settings),
        "reason": variant.left_out,
        "fix": variant.fix,
        "speed": speed.to_json() if speed else {},
    }
    if estimate is not None:
        fields |= estimate.to_json()
    cards: dict[str, dict[str, object]] = {}
    for card, (on_card, card_speed) in on_other_cards(variant).items():
        cards[card] = {"total_bytes": on_card.total_bytes, "verdict": on_card.verdict}
        if card_speed:
            cards[card] |= card_speed.to_json()
    return {**fields, "cards": cards}


def print_estimates(found: Sequence[Variant], *, is_whole: bool = True) -> None:
    """Print memory by component and phase, time and price, and other cards, for each point.

    A search chooses its runs later: what is found is then not the whole."""
    by_label: dict[str, list[Variant]] = {}
    for each in found:
        by_label.setdefault(each.point.label, []).append(each)
    for label, group in by_label.items():
        out.print(f"{label}: {_sentence(group)}", style="bold")
    shown = [group[0] for group in by_label.values()]
    estimated = [each for each in shown if each.estimate]
    if not estimated:
        return
    heads = ("", *(each.point.label for each in estimated))
    out.print(wide_table(heads, [*_component_rows(estimated), *_phase_rows(estimated)]))
    if len(shown) <= len(METHODS):
        out.print("\nOn other cards:")
        out.print(wide_table(heads, rows_of_other_cards(estimated)))
    if is_whole:
        _print_total(found)


def _print_total(found: Sequence[Variant]) -> None:
    num_runs = sum(1 for each in found if not each.left_out)
    hours = sum(each.speed.hours or 0 for each in found if each.speed and not each.left_out)
    usd = sum(each.speed.usd or 0 for each in found if each.speed and not each.left_out)
    noun = "run" if len(found) == 1 else "runs"
    said = f"\n{num_runs} of {len(found)} {noun} can start"
    if hours:
        said += f"; together about {rough_duration(3600 * hours)}"
    if usd:
        said += f", ${usd:,.2f}"
    out.print(f"{said}.")


def _sentence(group: Sequence[Variant]) -> str:
    """Return what is known of runs that differ in their seed alone."""
    parts, variant = [], group[0]
    if variant.estimate:
        parts.append(verdict_sentence(variant.estimate))
    elif not variant.left_out:
        parts.append("no estimate for this architecture")
    if variant.speed:
        parts.append(speed_sentence(variant.speed))
    if left_out := [each for each in group if each.left_out]:
        which = "left out"
        if len(left_out) < len(group):
            seeds = ", ".join(str(each.seed) for each in left_out)
            which = f"seed {seeds} left out"
        reason, fix = left_out[0].left_out, left_out[0].fix
        parts.append(f"{which}, {reason}; what would help: {fix}")
    return " · ".join(parts)


def _component_rows(estimated: Sequence[Variant]) -> list[tuple[str, ...]]:
    sizes = []
    for each in estimated:
        assert each.estimate
        sizes.append({part.title: part.bytes for part in memory_parts(each.estimate)})
    titles = dict.fromkeys(title for parts in sizes for title in parts)
    rows = [(title, *(_memory(parts.get(title)) for parts in sizes)) for title in titles]
    return [*rows, ("= total", *(_memory(sum(parts.values())) for parts in sizes))]


def _phase_rows(estimated: Sequence[Variant]) -> list[tuple[str, ...]]:
    phases = [dict(each.estimate.phases) for each in estimated if each.estimate]
    names = dict.fromkeys(name for each in phases for name in each)
    return [
        (f"peak: {MEASURED[name]}", *(_memory(each.get(name)) for each in phases)) for name in names
    ]


def _memory(num_bytes: int | None) -> str:
    return memory(num_bytes) if num_bytes else NONE
