"""Compare runs: the settings that differ, and the results. Reads only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.job import JobSpec
from core.resolve import reference_of
from core.runs import Run

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
        if curve:
            return float(curve.values[-1])
        return None

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


def compare_runs(runs: Sequence[Run]) -> tuple[Difference, ...]:
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
    differing = (each for each in settings if len(set(each.values)) > 1)
    return (*differing, *results, *_checks(runs))


def _checks(runs: Sequence[Run]) -> Iterator[Difference]:
    """Yield a line for each suite: tests that passed before and after, of how many.

    Suites of one name that hold other tests are not compared: each has its own line.
    """
    suites = dict.fromkeys((each.name, each.sha256) for run in runs for each in run.checks)
    names = [name for name, _ in suites]
    for name, sha256 in suites:
        title = f"check {name}"
        if names.count(name) > 1:
            title += f" ({sha256[:8]})"
        values = tuple(_passed(run, name, sha256) for run in runs)
        yield Difference(title, values, is_result=True)


def _passed(run: Run, name: str, sha256: str) -> str | None:
    """Return "0 → 89 of 100"; None if a run did not answer a suite."""
    for each in run.checks:
        if (each.name, each.sha256) == (name, sha256):
            return f"{each.before} → {each.after} of {each.total}"
    return None
