"""Compare runs: the settings that differ, and the results. Reads only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.job import JobSpec
from core.resolve import reference_of
from core.runs.run import Run

NOT_COMPARED = {"dataset", "eval_dataset", "dataset_sha256"}
"""Fields that name a run's own copy of its data. The hash says if two runs have the same rows."""


@dataclass(frozen=True)
class Difference:
    """Line of a comparison: a job field or a result, with its value in each run or None."""

    name: str
    values: tuple[object, ...]
    is_result: bool = False


def _last(key: str) -> Callable[[Run], float | None]:
    """Return a function that returns the last value of a curve of a run."""

    def last(run: Run) -> float | None:
        curve = run.curves().get(key)
        return float(curve.values[-1]) if curve else None

    return last


RESULTS: Mapping[str, Callable[[Run], object]] = {
    "state": lambda run: run.state,
    "step": lambda run: run.step,
    "loss": lambda run: run.loss,
    "eval_loss": _last("eval_loss"),
    "eval_perplexity": _last("eval_perplexity"),
    "peak_bytes": lambda run: run.peak_bytes,
    "peak_kind": lambda run: run.peak_kind if run.peak_bytes else None,
    "seconds": lambda run: run.seconds,
    "usd": lambda run: run.usd,
}


def compare(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """Return the fields whose values differ, then the results, with values in the order of runs."""
    jobs = [{**run.job.model_dump(), "model": reference_of(run.job.model)} for run in runs]
    settings = [
        Difference(name, tuple(job[name] for job in jobs))
        for name in JobSpec.model_fields
        if name not in NOT_COMPARED
    ]
    hashes = tuple(run.job.dataset_sha256[:12] or None for run in runs)
    settings.append(Difference("dataset", hashes))
    results = (
        Difference(name, tuple(map(result, runs)), is_result=True)
        for name, result in RESULTS.items()
    )
    return (*(each for each in settings if len(set(each.values)) > 1), *results)
