"""A whole model from shallow ones: layers repeat, so the peak of each segment is linear in the number of each kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .allocation_log import Ledger

PHASES = ("load", "generation", "forward", "backward", "optimizer_step", "eval")
"""Generation only where answers are drawn."""
NUM_ENDS = 2
"""Layers that a shallow model keeps at either end, whatever their kind."""


def shallow(kinds: Sequence[Any]) -> tuple[int, ...]:
    """Which layers a shallow model keeps: those at either end, and the first and the last of every kind."""
    count = len(kinds)
    ends = {*range(min(NUM_ENDS, count)), *range(max(0, count - NUM_ENDS), count)}
    first = {kinds.index(kind) for kind in kinds}
    last = {count - 1 - tuple(reversed(kinds)).index(kind) for kind in kinds}
    return tuple(sorted(ends | first | last))


def extended(
    kinds: Sequence[Any], play: Callable[[Sequence[int]], Ledger]
) -> tuple[Mapping[str, int], Ledger]:
    """Peak of each phase of the whole model, and the ledger of the deepest model that was played.

    `play` traces the model that is made of some of the layers, which name the segments of its ledger. First a shallow
    one, then once more for every kind with one more layer of it: a segment is compared where the same layer is at work.
    """
    base = shallow(kinds)
    ledger = play(base)
    total = {segment: peak.num_bytes for segment, peak in ledger.peaks.items()}
    shallow_peaks = dict(total)
    for kind in dict.fromkeys(kinds):
        spare = [index for index, other in enumerate(kinds) if other == kind and index not in base]
        if not spare:
            continue
        ledger = play(sorted((*base, _middle_of(spare, len(kinds)))))
        for segment, num_bytes in shallow_peaks.items():
            if segment in ledger.peaks:  # the backward pass ends where nothing trains any more
                total[segment] += len(spare) * (ledger.peaks[segment].num_bytes - num_bytes)
    return _by_phase(total), ledger


def _middle_of(indices: Sequence[int], count: int) -> int:
    """The index that is nearest the middle of a model of so many layers."""
    return min(indices, key=lambda index: abs(2 * index - count + 1))


def _by_phase(segments: Mapping[str, int]) -> dict[str, int]:
    """The highest segment of each phase."""
    played = {segment.split("/")[0] for segment in segments}
    return {
        phase: max(
            num_bytes for segment, num_bytes in segments.items() if segment.split("/")[0] == phase
        )
        for phase in PHASES
        if phase in played
    }
