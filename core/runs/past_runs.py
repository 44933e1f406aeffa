"""Predicted and measured memory and speed of runs on this machine. Reads only."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
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


def compared_peaks(run: Run) -> Mapping[str, tuple[int, int]]:
    """Return what was measured -> (predicted, measured) peak in bytes, of like with like.

    On a GPU: each phase (allocated), `reserved` and `card`. On a processor there is one number
    only, `process`: the tensors of a phase are not counted there, and the C library keeps what
    they took.
    """
    status, predicted = run.status, run.prediction()
    if run.peak_kind == "process":
        found = {"process": (run.predicted_bytes, run.peak_bytes)}
    else:
        found = {
            phase: (predicted.phases.get(phase), peak)
            for phase, peak in status.phase_peak_bytes.items()
        }
        found["reserved"] = (predicted.peak_reserved_bytes, status.peak_reserved_bytes)
        found["card"] = (predicted.total_bytes, status.peak_device_bytes)
    return {
        name: (expected, measured)
        for name, (expected, measured) in found.items()
        if expected and measured
    }


def prediction_errors(run: Run) -> Mapping[str, float]:
    """Return what was measured -> error of the prediction as a share: 0.01 means 1 % too high."""
    peaks = compared_peaks(run)
    return {name: predicted / measured - 1 for name, (predicted, measured) in peaks.items()}


def past_runs(home: Home, resolved: ResolvedJob) -> tuple[PastRun, ...]:
    """Return predicted and measured memory of the newest finished runs on the job's device.

    () for a GPU of another machine.
    """
    found = (_memory(run) for run in _finished(home, resolved))
    return tuple(each for each in found if each)[:MAX_RUNS]


def forecast(home: Home, resolved: ResolvedJob) -> dict[str, object]:
    """Return memory, speed and fixes of a job as `estimate --json` prints them.

    The memory is corrected by past runs, so that a run keeps the number that was shown before it.
    {} for an unknown architecture. Raises SpecError.
    """
    if resolved.model.shape is None:
        return {}
    uncalibrated = replace(resolved, past=()).estimate().peak_reserved_bytes
    corrected = replace(resolved, past=past_runs(home, resolved))
    return corrected.forecast() | {"uncalibrated_reserved_bytes": uncalibrated}


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
    status, predicted = run.status, run.prediction()
    if predicted.peak_allocated_bytes is None or predicted.peak_reserved_bytes is None:
        return None  # an estimate of an early version
    reserved = predicted.uncalibrated_reserved_bytes or predicted.peak_reserved_bytes
    context_bytes = number_in(run.last_metrics, "context_bytes")
    if status.peak_allocated_bytes is None and status.peak_process_bytes:
        context_bytes = status.peak_process_bytes - predicted.peak_allocated_bytes
        # Too many tensors may have been predicted; the process without any took this much.
        context_bytes = max(context_bytes, status.baseline_bytes or 0)
    return PastRun(
        predicted_allocated_bytes=predicted.peak_allocated_bytes,
        predicted_reserved_bytes=reserved,
        allocated_bytes=status.peak_allocated_bytes or 0,
        reserved_bytes=status.peak_reserved_bytes or 0,
        context_bytes=None if context_bytes is None else int(context_bytes),
    )


@lru_cache(maxsize=1000)
def _speed(run: Run) -> Measurement | None:
    span = run.estimates()[-1]
    predicted = span.prediction.tokens_per_second
    curve = run.curves().get("tokens_per_second")
    if not predicted or curve is None:
        return None
    values = curve.values[curve.steps > span.after_step]
    if len(values) < MIN_STEPS:
        return None
    return Measurement(predicted, float(np.nanmedian(values[WARM_UP_STEPS:])))
