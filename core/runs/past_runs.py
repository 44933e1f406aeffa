"""Predicted and measured memory and speed of runs on this machine. Reads only."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

from core.memory import PastRun
from core.resolve import ResolvedJob
from core.runs.files import number_in
from core.runs.home import Home
from core.runs.listing import list_runs
from core.runs.run import Run
from core.speed import Measurement

LARGE_ERROR = 0.05
"""Share of a phase's memory above which a wrong prediction is pointed out."""
MAX_RUNS = 20
"""The newest count, because drivers and libraries change."""
MIN_STEPS = 5
"""Fewer steps say nothing about the speed."""
WARM_UP_STEPS = 2
"""First steps, in which kernels are compiled and chosen."""


def phase_peaks(run: Run) -> Mapping[str, tuple[int, int]]:
    """Return phase -> (predicted, measured) peak in bytes, for the phases that were measured."""
    predicted = run.prediction().phases
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


def past_runs(home: Home, resolved: ResolvedJob) -> tuple[PastRun, ...]:
    """Return predicted and measured memory of the newest finished runs on the job's device.

    () for a GPU of another machine.
    """
    found = (_memory(run) for run in _finished(home, resolved))
    return tuple(each for each in found if each)[:MAX_RUNS]


def speeds(home: Home, resolved: ResolvedJob) -> tuple[Measurement, ...]:
    """Return predicted and measured tokens per second of finished runs like this job.

    They have the same model, stage, method and device.
    """
    job = resolved.job
    kind = (resolved.model.location, job.stage, job.method)
    found = (
        _speed(run)
        for run in _finished(home, resolved)
        if (run.job.model, run.job.stage, run.job.method) == kind
    )
    return tuple(each for each in found if each)[:MAX_RUNS]


def _finished(home: Home, resolved: ResolvedJob) -> Iterator[Run]:
    """Yield the finished runs on the device of a job, if that is of this machine."""
    if resolved.job.gpu != "local":
        return
    name = resolved.gpu.name.removesuffix(" only")
    for run in list_runs(home):
        # drivers put the maker before the name of a GPU
        is_on_device = run.job.gpu == "local" and (run.status.device or "").endswith(name)
        if run.state == "finished" and is_on_device:
            yield run


@lru_cache(maxsize=1000)
def _memory(run: Run) -> PastRun | None:
    allocated, reserved = run.status.peak_allocated_bytes, run.status.peak_reserved_bytes
    if allocated is None or reserved is None:
        return None  # trained on a CPU
    predicted = run.prediction()
    if predicted.peak_allocated_bytes is None or predicted.peak_reserved_bytes is None:
        return None  # an estimate of an early version
    context_bytes = number_in(run.last_metrics, "context_bytes")
    return PastRun(
        predicted_allocated_bytes=predicted.peak_allocated_bytes,
        predicted_reserved_bytes=predicted.peak_reserved_bytes,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        context_bytes=None if context_bytes is None else int(context_bytes),
    )


@lru_cache(maxsize=1000)
def _speed(run: Run) -> Measurement | None:
    predicted = run.prediction().tokens_per_second
    curve = run.curves().get("tokens_per_second")
    if not predicted or curve is None or len(curve.values) < MIN_STEPS:
        return None
    return Measurement(predicted, float(np.nanmedian(curve.values[WARM_UP_STEPS:])))
