"""Extrapolate a whole model from shallow ones: layers repeat, so the peak of each segment is linear
in the number of layers of each kind.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .allocation_log import AllocationLog

TRACED_PHASES = ("load", "generation", "forward", "backward", "optimizer_step", "eval")
"""Phases in their order; generation in online stages only."""
NUM_END_LAYERS = 2
"""Layers at either end that a shallow model keeps in any case."""


def shallow_layers(kinds: Sequence[Any]) -> tuple[int, ...]:
    """Return the layers of a shallow model: those at the ends, the first and last of every kind."""
    count = len(kinds)
    kept = {*range(min(NUM_END_LAYERS, count)), *range(max(0, count - NUM_END_LAYERS), count)}
    backwards = tuple(reversed(kinds))
    for kind in kinds:
        kept.add(kinds.index(kind))
        kept.add(count - 1 - backwards.index(kind))
    return tuple(sorted(kept))


def extrapolate(
    kinds: Sequence[Any], trace_layers: Callable[[Sequence[int]], AllocationLog]
) -> tuple[Mapping[str, int], AllocationLog]:
    """Return (peak of each phase of the whole model, log of the deepest model that was traced).

    `trace_layers` traces the model with some of its layers, whose indices name the segments of its
    log. First a shallow one is traced, then for every kind one with one more layer of it. Segments
    are compared where the same layer is at work.
    """
    try:
        return _extrapolate(kinds, trace_layers)
    except RuntimeError:
        # Layers that depend on one another, such as those that share keys, cannot be left out.
        return _extrapolate(range(len(kinds)), trace_layers)


def _extrapolate(
    kinds: Sequence[Any], trace_layers: Callable[[Sequence[int]], AllocationLog]
) -> tuple[Mapping[str, int], AllocationLog]:
    shallow = shallow_layers(kinds)
    log = trace_layers(shallow)
    shallow_peaks = {segment: peak.num_bytes for segment, peak in log.peaks.items()}
    peaks = dict(shallow_peaks)
    for kind in dict.fromkeys(kinds):
        left_out = [
            index for index, other in enumerate(kinds) if other == kind and index not in shallow
        ]
        if not left_out:
            continue
        log = trace_layers(sorted((*shallow, _closest_to_middle(left_out, len(kinds)))))
        for segment, num_bytes in shallow_peaks.items():
            if segment in log.peaks:  # missing where the backward pass ends below it
                growth = log.peaks[segment].num_bytes - num_bytes
                peaks[segment] += len(left_out) * growth
    return _highest_by_phase(peaks), log


def _closest_to_middle(indices: Sequence[int], num_layers: int) -> int:
    return min(indices, key=lambda index: abs(2 * index - num_layers + 1))


def _highest_by_phase(peaks: Mapping[str, int]) -> dict[str, int]:
    """Return the highest segment of each phase, in the order of the phases."""
    by_phase: dict[str, list[int]] = {phase: [] for phase in TRACED_PHASES}
    for segment, num_bytes in peaks.items():
        by_phase[segment.split("/")[0]].append(num_bytes)
    return {phase: max(found) for phase, found in by_phase.items() if found}
