"""Step and last step of a run whose program has not said yet where it stands."""

from dataclasses import replace
from pathlib import Path

from core.runs.files import read_json
from core.training.contract.checkpoint_files import MANIFEST, TRAINER_STATE, list_checkpoints
from core.training.contract.status import Status


def with_known_steps(folder: Path, status: Status) -> Status:
    """Return a status with the step from which the run continues, and its last one.

    Each attempt begins with an empty status: its program reads its newest checkpoint only after its
    libraries and its rows. Without a checkpoint it begins at step 0, and its last step is unknown.
    """
    if status.max_steps:
        return status
    for checkpoint in reversed(list_checkpoints(folder / "checkpoints")):
        if checkpoint.is_complete:
            names = (MANIFEST, TRAINER_STATE)  # early versions wrote no manifest
            totals = [read_json(checkpoint.folder / name).get("max_steps") for name in names]
            known = [total for total in totals if isinstance(total, int) and total > 0]
            if known:
                return replace(status, step=checkpoint.step, max_steps=known[0])
    return status
