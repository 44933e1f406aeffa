"""Results of runs that have ended: check them, publish a checkpoint, or train for more epochs; and
runs that are resumed on other devices.

`failure_advice` has what helps a run without a result.
"""

from core.runs.results.continuation import (
    Continuation,
    create_continuation,
    plan_continuation,
)
from core.runs.results.publishing import (
    UNDO,
    ListedCheckpoint,
    checkpoints_of,
    has_original,
    publish,
    publish_original,
)
from core.runs.results.resuming import change_num_devices, resume_on, stays_divided

__all__ = [
    "UNDO",
    "Continuation",
    "ListedCheckpoint",
    "change_num_devices",
    "checking",
    "checkpoints_of",
    "create_continuation",
    "failure_advice",
    "has_original",
    "lm_evaluation",
    "plan_continuation",
    "publish",
    "publish_original",
    "resume_on",
    "stays_divided",
]
