"""What differs between runs: the settings that are not the same, and how each came out. Reads; judges nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.job import JobSpec
from core.resolve import reference_of
from core.runs.curves import read_curves
from core.runs.run import Run

UNCOMPARED = {"dataset", "eval_dataset", "dataset_sha256"}
"""Of each run its own copy; the hash below tells whether the rows are the same."""


@dataclass(frozen=True)
class Difference:
    """One line of a comparison: a JobSpec field or a result, and its value in each run; None where there is none."""

    name: str
    values: tuple[object, ...]
    is_result: bool = False


RESULTS: Mapping[str, Callable[[Run], object]] = {
    "state": lambda run: run.state,
    "step": lambda run: run.step,
    "loss": lambda run: run.loss,
    "eval_loss": lambda run: _last_eval_loss(run),
    "peak_bytes": lambda run: run.peak_bytes,
    "seconds": lambda run: run.seconds,
    "usd": lambda run: run.usd,
}


def compare(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """The fields whose values differ, then the results of each run, in the order of the runs."""
    jobs = [run.job.model_dump() | {"model": reference_of(run.job.model)} for run in runs]
    settings = [
        Difference(name, tuple(job[name] for job in jobs))
        for name in JobSpec.model_fields
        if name not in UNCOMPARED
    ]
    hashes = Difference("dataset", tuple(run.job.dataset_sha256[:12] or None for run in runs))
    differing = tuple(each for each in (*settings, hashes) if len(set(each.values)) > 1)
    results = (
        Difference(name, tuple(map(result, runs)), is_result=True)
        for name, result in RESULTS.items()
    )
    return (*differing, *results)


def _last_eval_loss(run: Run) -> float | None:
    curve = read_curves(run.folder).get("eval_loss")
    return float(curve.values[-1]) if curve else None
