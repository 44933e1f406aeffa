"""Checkpoints of a run, as its folder holds them. Reads sizes and names; never opens a tensor."""

from pathlib import Path

from core.training.contract.checkpoint_files import Checkpoint, list_checkpoints


def checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """Return the checkpoints in a run's folder, oldest first."""
    return list_checkpoints(folder / "checkpoints")


def has_checkpoint(folder: Path) -> bool:
    """Return True if the run can be resumed from a checkpoint."""
    return any(checkpoint.is_complete for checkpoint in checkpoints(folder))
