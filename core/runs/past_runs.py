"""What past runs on this machine teach about the next: its speed, the CUDA context, what is reserved. Only reads."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from core import runs
from core.memory import PastRun
from core.resolve import ResolvedJob
from core.runs import Home, Run
from core.speed import Measurement
from core.training.contract.status import Status

MOST_RUNS = 20
"""The newest that count: drivers and libraries change."""
LEAST_STEPS = 5
"""Of a run, before its pace says something; the first two are left out, in which kernels are compiled and chosen."""


def past_runs(home: Home, resolved: ResolvedJob) -> tuple[PastRun, ...]:
    """Foretold and measured memory of the newest finished runs on the job's card; none for a card that is not here."""
    if resolved.job.gpu != "local":
        return ()
    found = (_memory(run.folder, run.created) for run in _finished(home) if _is_on(run, resolved))
    return tuple(each for each in found if each)[:MOST_RUNS]


def speeds(home: Home, resolved: ResolvedJob) -> tuple[Measurement, ...]:
    """Foretold and measured tokens per second of finished runs of the same model, stage and method on the same card."""
    alike = (
        run
        for run in _finished(home)
        if _is_on(run, resolved)
        and run.job.model == resolved.model.location
        and (run.job.stage, run.job.method) == (resolved.job.stage, resolved.job.method)
    )
    found = (_speed(run.folder, run.created) for run in alike)
    return tuple(each for each in found if each)[:MOST_RUNS]


def _finished(home: Home) -> Iterator[Run]:
    return (run for run in runs.list_runs(home) if run.state == "finished")


def _is_on(run: Run, resolved: ResolvedJob) -> bool:
    """True if a run trained on this machine's card that the job is for: drivers add a maker's name to a card's."""
    device = run.status.device or ""
    name = resolved.gpu.name.removesuffix(" only")
    return run.job.gpu == "local" == resolved.job.gpu and device.endswith(name)


@lru_cache(maxsize=1000)
def _memory(folder: Path, _created: float) -> PastRun | None:
    foretold = runs.read_json(folder / "estimate.json")
    status = Status.from_json(runs.read_json(folder / "status.json"))
    if status.peak_allocated_bytes is None or status.peak_reserved_bytes is None:
        return None  # trained on a CPU
    try:
        return PastRun(
            predicted_allocated_bytes=int(foretold["peak_allocated_bytes"]),
            predicted_reserved_bytes=int(foretold["peak_reserved_bytes"]),
            allocated_bytes=status.peak_allocated_bytes,
            reserved_bytes=status.peak_reserved_bytes,
            context_bytes=runs.last_metrics(folder).get("context_bytes"),
        )
    except (
        KeyError,
        TypeError,
        ValueError,
    ):  # an estimate of an early version
        return None


@lru_cache(maxsize=1000)
def _speed(folder: Path, _created: float) -> Measurement | None:
    foretold = runs.read_json(folder / "estimate.json").get("speed") or {}
    curve = runs.read_curves(folder).get("tokens_per_second")
    if curve is None or len(curve.values) < LEAST_STEPS or not foretold.get("tokens_per_second"):
        return None
    return Measurement(float(foretold["tokens_per_second"]), float(np.nanmedian(curve.values[2:])))
