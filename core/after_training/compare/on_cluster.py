"""Runs of a comparison on a cluster: sent together, as one job with a task for each if it can.

A search sends its runs one by one, as its optimizer chooses them.
"""

from collections.abc import Sequence

from core.after_training.compare.record import Comparison, folder_of
from core.runs import Home, Run, queue


def submit_all(home: Home, comparison: Comparison, runs: Sequence[Run]) -> None:
    """Queue runs of a comparison, or send them to its cluster, except those that another program
    has started by now. Raises SpecError if the cluster refuses."""
    script = folder_of(home) / f"{comparison.id}.sh"
    queue.submit_together(home, runs, comparison.placement, script)


def was_never_sent(run: Run) -> bool:
    """Return True for a run that neither this machine nor a cluster has had, nor refused."""
    traces = ("process.json", "status.json")
    return run.submission is None and not any((run.folder / name).exists() for name in traces)
