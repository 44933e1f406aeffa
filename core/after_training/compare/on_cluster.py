"""Runs of a comparison on a cluster: sent together, as one job with a task for each if it can.

A search sends its runs one by one, as its optimizer chooses them.
"""

from collections.abc import Sequence

from core.after_training.compare.record import Comparison, folder_of
from core.runs import Home, Run, queue


def submit_all(home: Home, comparison: Comparison, runs: Sequence[Run]) -> None:
    """Queue runs of a comparison, or send them to its cluster. Raises SpecError if it refuses."""
    placement = comparison.placement
    if placement.is_here:
        for run in runs:
            queue.submit(home, run)
    elif runs:
        script = folder_of(home) / f"{comparison.id}.sh"
        queue.submit_together(home, runs, placement, script)


def was_never_sent(run: Run) -> bool:
    """Return True for a run that neither this machine nor a cluster has had, nor refused."""
    traces = ("process.json", "status.json")
    return run.submission is None and not any((run.folder / name).exists() for name in traces)
