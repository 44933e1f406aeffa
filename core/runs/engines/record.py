"""Engine: the record of one kind of cluster. A file beside this one has its functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.runs.engines.placement import Placement
from core.runs.engines.submission import ClusterState, Submission


class ClusterSilent(Exception):
    """Cluster that does not answer, with the reason: what it said before still holds."""


@dataclass(frozen=True)
class Found:
    """View of a cluster from this machine, for the menus of a form."""

    problem: str = ""
    """Why runs cannot be sent to it, "" if they can."""
    fix: str = ""
    partitions: tuple[str, ...] = ()
    """Partitions of the site, the usual one first."""


def no_instructions(_folder: Path, _placement: Placement, _num_devices: int) -> str:
    """Return nothing: the cluster starts the programs."""
    return ""


def none_known(_placement: Placement, _file: Path) -> Sequence[str]:
    """Return no node: none can be asked."""
    return ()


@dataclass(frozen=True)
class Engine:
    """Kind of cluster, and how Tailor speaks to it.

    A run is resumed by submitting it again: the program continues from its newest checkpoint.
    """

    id: str
    title: str
    fields: tuple[str, ...]
    """Fields of a placement that it understands."""
    look: Callable[[Placement], Found]
    """Return whether it is there."""
    submit: Callable[[Path, Placement, int], str]
    """Hand a run folder over, with the number of devices on each node. Return the id of the job.
    Raises SpecError, OSError."""
    ask: Callable[[Sequence[Submission]], Mapping[str, ClusterState]]
    """Return the states by the name of the run folder. Raises ClusterSilent."""
    stop: Callable[[Submission], None]
    """Take a waiting job out, or let the program save a checkpoint and end. Raises ClusterSilent.
    """
    cancel: Callable[[Submission], None]
    """End a job that did not stop in time. Raises ClusterSilent."""
    instructions: Callable[[Path, Placement, int], str] = field(default=no_instructions)
    """Return what the user has to type, "" for nothing."""
    blind_nodes: Callable[[Placement, Path], Sequence[str]] = field(default=none_known)
    """Let nodes that are free look for a file. Return which of them do not see it; those that do
    not answer within seconds say nothing."""
    submit_array: Callable[[Sequence[Path], Placement, int, Path], Sequence[str]] | None = None
    """Hand several run folders over as one job, with a script at this path. Return the ids of its
    tasks. Raises SpecError, OSError. None if the cluster has no such jobs."""

    trust: str = ""
    """What its users should know of whom it trusts."""

    @property
    def starts_programs(self) -> bool:
        """True if the user need not type anything."""
        return self.instructions is no_instructions
