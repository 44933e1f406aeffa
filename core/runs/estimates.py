"""Estimates of a run: that of its devices now, and those of earlier attempts on other devices.

Each attempt is compared with the estimate that was made for it. Estimates nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.files import number_in, read_json
from core.runs.records import Prediction
from core.training.contract.files import write_json
from core.training.contract.status import Status

NOW, EARLIER = "estimate.json", "earlier_estimates.json"


@dataclass(frozen=True)
class EstimateSpan:
    """Prediction, and the steps that it is for."""

    prediction: Prediction
    after_step: float = 0.0
    """Step after which it holds."""
    last_step: float | None = None
    """None for the newest attempt."""


def spans_of(folder: Path, status: Status) -> tuple[EstimateSpan, ...]:
    """Return the estimates of a run in the order of its steps. The last is that of the attempt
    whose status this is."""
    spans: list[EstimateSpan] = []
    after_step = 0.0
    for each in _earlier(folder):
        fields = each.get("estimate")
        prediction = Prediction.from_json(fields if isinstance(fields, dict) else {})
        if status.started and number_in(each, "started") == status.started:
            return (*spans, EstimateSpan(prediction, after_step))
        last_step = number_in(each, "step") or 0.0
        if last_step > after_step:
            spans.append(EstimateSpan(prediction, after_step, last_step))
        after_step = last_step
    prediction = Prediction.from_json(read_json(folder / NOW))
    return (*spans, EstimateSpan(prediction, after_step))


def replace_estimate(
    folder: Path, estimate: Mapping[str, Any], status: Status, checkpoint_step: int
) -> None:
    """Give a run the estimate of other devices, and keep the one that its last attempt was made
    with. `checkpoint_step` is the step from which it continues. Raises OSError."""
    earlier = _earlier(folder)
    is_kept = any(number_in(each, "started") == status.started for each in earlier)
    if status.started and not is_kept:
        before = read_json(folder / NOW)
        kept = {"started": status.started, "step": checkpoint_step, "estimate": before}
        write_json(folder / EARLIER, {"earlier": [*earlier, kept]})
    write_json(folder / NOW, estimate)


def _earlier(folder: Path) -> list[dict[str, Any]]:
    """Return what is kept of earlier estimates, the oldest first, without damaged parts."""
    found = read_json(folder / EARLIER).get("earlier")
    listed = found if isinstance(found, list) else []
    return [each for each in listed if isinstance(each, dict)]
