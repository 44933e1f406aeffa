"""States of a run, the transitions between them, and the phases of a running program."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

State = Literal[
    "queued", "starting", "running", "stopping", "finished", "stopped", "failed", "interrupted"
]
Phase = Literal["import", "data", "load", "train", "eval", "save"]
"""Step of the training program that runs now, or ran last."""

ENDED: frozenset[State] = frozenset({"finished", "stopped", "failed", "interrupted"})
ACTIVE: frozenset[State] = frozenset({"queued", "starting", "running", "stopping"})
TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        "queued": frozenset({"starting", "stopped", "failed"}),
        "starting": frozenset({"queued", "running", "stopping", *ENDED}),
        "running": frozenset({"stopping", *ENDED}),
        "stopping": ENDED,
        "finished": frozenset(),
        "stopped": frozenset({"queued", "starting"}),
        "failed": frozenset({"queued", "starting"}),
        "interrupted": frozenset({"queued", "starting"}),
    }
)
"""State -> states that may follow. A new run is `starting`; until its program starts, it may still
be queued."""
