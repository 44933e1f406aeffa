"""Peak memory of a deep model, extrapolated from shallow ones."""

from collections.abc import Sequence

import pytest

from core.workers.trace.allocation_log import ROUNDING_BYTES, AllocationLog
from core.workers.trace.depth import extrapolate, shallow_layers

KINDS = ["s" * 9, "ssssfss", "sssssfss", "sssssf" * 5, "f" + "s" * 20, "sf", "ssssssstt", "sst"]
"""Models, one letter for the kind of each layer."""
BLOCKS_AT_WORK = {"s": 300, "f": 512, "t": 1024}
"""Kind -> blocks of memory that such a layer needs while it is computed."""


def log_of(kinds: str, indices: Sequence[int]) -> AllocationLog:
    """Return the log of a model with some of its layers.

    Each layer keeps its input for the layers after it, and a gradient for the layers before it.
    """
    log = AllocationLog({})
    for phase in ("load", "optimizer_step", "eval"):
        log.enter(phase)
    for place, index in enumerate(indices):
        at_work = BLOCKS_AT_WORK[kinds[index]]
        inputs = 4 * place
        gradients = 2 * (len(indices) - place)
        for phase, held in (("forward", inputs), ("backward", inputs + gradients)):
            log.enter(f"{phase}/{index}")
            with log.temporary(ROUNDING_BYTES * (held + at_work), "layer"):
                pass
    return log


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("kinds", KINDS)
def test_the_peak_of_a_deep_model_is_found(kinds: str, phase: str) -> None:
    whole = log_of(kinds, range(len(kinds)))
    peaks, _ = extrapolate(kinds, lambda indices: log_of(kinds, indices))
    of_phase = [
        peak.num_bytes for segment, peak in whole.peaks.items() if segment.startswith(phase)
    ]
    assert peaks[phase] == max(of_phase)


@pytest.mark.parametrize("kinds", KINDS)
def test_a_shallow_model_has_few_layers(kinds: str) -> None:
    assert len(shallow_layers(kinds)) <= min(len(kinds), 4 + 2 * len(set(kinds)))
