"""Checkpoints of a run: written atomically, verified by hash, resumed only by the same job. Never
imports torch."""

from .folder import CheckpointFolder, VerifiedCheckpoint, publish, seal
from .identity import (
    allowed_changes,
    config_file,
    facts_of,
    keep_rows_of_step,
    keep_smaller_batch,
    require_same_division,
)

# fmt: off
__all__ = [
    "CheckpointFolder", "VerifiedCheckpoint", "allowed_changes", "config_file", "facts_of",
    "keep_rows_of_step", "keep_smaller_batch", "publish", "require_same_division", "seal",
]
# fmt: on
