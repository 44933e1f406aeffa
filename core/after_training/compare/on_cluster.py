"""Runs of a comparison on a cluster: sent together, as one job with a task for each if it can.

A search sends its runs one by one, as its optimizer chooses them.
"""

from collections.abc import Sequence

from core.after_training.compare.record import Comparison, folder_of
from core.job import Problem, SpecError
from core.runs import Home, Run, queue
from core.runs.engines import ENGINES, Placement


def require_possible(home: Home, placement: Placement) -> None:
    """Raise SpecError for a cluster that cannot have the runs of a comparison."""
    if placement.is_here:
        return
    if not ENGINES[placement.engine].starts_programs:
        problem = f"{placement.title} cannot start the runs of a comparison"
        raise SpecError(Problem("on", problem, "choose slurm or ray"))
    queue.require_seen(home, placement)


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
