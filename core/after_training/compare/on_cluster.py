"""Runs of a comparison on a cluster: sent together, as one job with a task for each if it can.

A search sends its runs one by one, as its optimizer chooses them.
"""

from collections.abc import Sequence
from dataclasses import replace

from core.after_training.compare.record import Comparison, folder_of
from core.job import SpecError
from core.runs import Home, Run, queue, read


def submit_all(home: Home, comparison: Comparison, runs: Sequence[Run]) -> None:
    """Queue runs of a comparison, or send them to its cluster, except those that another program
    has started by now. Raises SpecError if the cluster refuses."""
    script = folder_of(home) / f"{comparison.id}.sh"
    try:
        queue.submit_together(home, runs, comparison.placement, script)
    except SpecError as error:
        if not any(was_not_taken(read(home, run.id)) for run in runs):
            raise
        fix = f"to send them again: python app.py compare --resume {comparison.id}"
        raise SpecError(*(replace(each, fix=fix) for each in error.problems)) from error


def was_never_sent(run: Run) -> bool:
    """Return True for a run that neither this machine nor a cluster has had, nor refused."""
    traces = ("process.json", "status.json")
    return run.submission is None and not any((run.folder / name).exists() for name in traces)


def was_not_taken(run: Run) -> bool:
    """Return True for a new run that a cluster has refused, or for which it did not answer."""
    return bool(run.submission and run.submission.was_not_taken and run.state == "failed")
