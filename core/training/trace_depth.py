"""A whole model from shallow ones: layers repeat, so the peak of each segment is linear in the number of each kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .trace_ledger import Ledger

PHASES = ("load", "forward", "backward", "optimizer_step", "eval")


def shallow(kinds: Sequence[Any]) -> tuple[int, ...]:
    """Which layers a shallow model keeps: one of every kind at either end, two if all are alike."""
    count = 1 if len(set(kinds)) > 1 else 2
    if len(kinds) <= 2 * count * len(set(kinds)):
        return tuple(range(len(kinds)))
    first = [index for index, kind in enumerate(kinds) if kinds[:index].count(kind) < count]
    last = [index for index, kind in enumerate(kinds) if kinds[index + 1 :].count(kind) < count]
    return tuple(sorted({*first, *last}))


def extended(kinds: Sequence[Any], play: Callable[[Sequence[int]], Ledger]) -> tuple[Mapping[str, int], Ledger]:
    """Peak of each phase of the whole model, and the ledger of the deepest model that was played.

    `play` traces the model that is made of some of the layers. First a shallow one, then once more for every kind
    with one more layer of it in the middle.
    """
    base = shallow(kinds)
    ledger = play(base)
    if len(base) == len(kinds):
        return _by_phase({segment: peak.num_bytes for segment, peak in ledger.peaks.items()}), ledger
    total = {segment: peak.num_bytes for segment, peak in ledger.peaks.items()}
    shallow_peaks = dict(total)
    middle = len(base) // 2
    for kind in dict.fromkeys(kinds):
        spare = next((index for index, other in enumerate(kinds) if other == kind and index not in base), None)
        if spare is None:
            continue
        deeper = play((*base[:middle], spare, *base[middle:]))
        num_more = list(kinds).count(kind) - sum(kinds[index] == kind for index in base)
        for segment, num_bytes in shallow_peaks.items():
            if segment in deeper.peaks:  # the backward pass ends where nothing trains any more
                total[segment] += num_more * (deeper.peaks[segment].num_bytes - num_bytes)
        ledger = deeper
    return _by_phase(total), ledger


def _by_phase(segments: Mapping[str, int]) -> dict[str, int]:
    """The highest segment of each phase."""
    return {
        phase: max(num_bytes for segment, num_bytes in segments.items() if segment.split("/")[0] == phase)
        for phase in PHASES
    }
