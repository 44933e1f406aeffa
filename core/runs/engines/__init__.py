"""Engines: the clusters on which a run can train beside this machine. Know folders, not runs.

ENGINES is the table; `placement` says what a user may choose, and `submission` what a run folder
keeps of it. The run folder must lie on storage that the nodes see: everything else is the same.
"""

from core.runs.engines.placement import HERE, Placement
from core.runs.engines.probe import why_not_seen
from core.runs.engines.record import ClusterSilent, Engine, Found
from core.runs.engines.submission import (
    ClusterState,
    Submission,
    read_submission,
    write_submission,
)
from core.runs.engines.table import ENGINES, engine_of, found_engines

__all__ = [
    "ENGINES",
    "HERE",
    "ClusterSilent",
    "ClusterState",
    "Engine",
    "Found",
    "Placement",
    "Submission",
    "engine_of",
    "found_engines",
    "read_submission",
    "script",
    "submission",
    "why_not_seen",
    "write_submission",
]
