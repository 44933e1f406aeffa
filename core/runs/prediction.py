"""Compare the predicted memory of a run with the measured one. Reads only."""

from collections.abc import Mapping

from core.runs.files import read_json
from core.runs.run import Run

LARGE_ERROR = 0.05
"""Share of a phase's memory above which a wrong prediction is pointed out."""


def phase_peaks(run: Run) -> Mapping[str, tuple[int, int]]:
    """Return phase -> (predicted, measured) peak in bytes, for the phases that were measured."""
    predicted = read_json(run.folder / "estimate.json").get("phases", {})
    measured = run.status.phase_peak_bytes
    return {
        phase: (predicted[phase], peak)
        for phase, peak in measured.items()
        if predicted.get(phase) and peak
    }


def prediction_errors(run: Run) -> Mapping[str, float]:
    """Return phase -> error of the prediction as a share: 0.01 means 1 % too high.

    Empty on a CPU: what is measured there is the growth of the whole process, which the C library
    rounds up and keeps, and not the tensors.
    """
    if run.status.baseline_bytes:
        return {}
    return {
        phase: predicted / measured - 1 for phase, (predicted, measured) in phase_peaks(run).items()
    }
