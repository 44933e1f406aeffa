"""Save checkpoints and the result: only if there is room on the disk and the weights are finite."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn
from transformers.training_args import OptimizerNames

from ..checkpoints import CheckpointFolder, VerifiedCheckpoint, publish, seal
from ..contract.checkpoint_files import bytes_in, checkpoint_name
from ..contract.failures import TrainingError, diagnose, gib
from ..contract.job import BATCH_FIELDS
from ..ranks import agreement
from ..record import RunFiles
from .divergence import are_finite
from .probe import state_bytes

FREE_BYTES_AFTER_SAVE = 32 * 2**20
"""Room for tokenizers, logs and metrics."""
SAVES_NOTHING = "TAILOR_SAVES_NOTHING"
"""Environment variable of a caller, such as a benchmark, that ends the program before it saves."""


class Saver:
    """Writer of the checkpoints and the result of one run."""

    def __init__(
        self,
        run_files: RunFiles,
        checkpoints: CheckpointFolder,
        facts: Mapping[str, Any],
        max_checkpoints: int,
    ):
        """`max_checkpoints`: newest good checkpoints that are kept."""
        self.run_files = run_files
        self.checkpoints = checkpoints
        self.facts = facts
        self.max_checkpoints = max_checkpoints
        self.building: Path | None = None
        """Folder in which the trainer writes its checkpoint, while one is being written."""
        self.best_step: int | None = None
        """Step of a checkpoint that stays however many follow; None: there is none."""
        self._checkpoint_bytes = 0

    def require_room(self, trainer: Any) -> None:
        """Raise TrainingError if the disk cannot take the checkpoints and the result of the whole
        run."""
        if os.environ.get(SAVES_NOTHING):
            return
        each = self._expected_bytes(trainer)
        num_written = _num_checkpoints(trainer)
        at_most = self.max_checkpoints
        if trainer.monitor.job.keep_best != "off":  # the best one, saved beside all others
            num_written, at_most = num_written + 1, at_most + 1
        num_kept = min(at_most, num_written)
        # A new checkpoint is written before the oldest is removed; the result is written beside
        # those that are kept.
        while_saving = min(at_most + 1, num_written) * each
        at_the_end = num_kept * each + weight_bytes(trainer.model)
        needed = (
            max(while_saving, at_the_end) + FREE_BYTES_AFTER_SAVE - self.checkpoints.size_bytes()
        )
        free = self._free_bytes()
        if needed > free:
            raise TrainingError(
                f"The checkpoints and the result will take {gib(needed)}, but only {gib(free)} is "
                f"free on the disk of {self.run_files.folder}. Make room, or keep fewer "
                f"checkpoints than save_total_limit {self.max_checkpoints}.",
                cause="disk_full",
                needed_bytes=needed,
                free_bytes=free,
            )

    def save(self, trainer: Any, write: Callable[[], None]) -> None:
        """Add a checkpoint, then remove old ones. If it cannot be written, warn and let the
        training continue."""
        step = trainer.state.global_step
        if agreement.any_rank(not are_finite(trainable(trainer.model))):
            self.run_files.warn(
                f"No checkpoint is kept of step {step}: its weights are no longer finite."
            )
            return
        batch = {name: getattr(trainer.args, name) for name in BATCH_FIELDS}
        facts = {**self.facts, **batch}
        try:
            self._write_with_all_ranks(trainer, facts, write)
        except Exception as error:
            if not is_disk_error(error):
                raise
            self.run_files.warn(
                f"The checkpoint of step {step} was not written: {_reason(error)}. "
                f"{self.last_checkpoint_sentence()}"
            )
        else:
            if not self.run_files.rank.is_first:
                return
            folder = self.checkpoints.folder / checkpoint_name(step)
            self._checkpoint_bytes = bytes_in(folder)
            self.run_files.sync()
            self.run_files.update(checkpoint_step=step, warning=None)
            self.checkpoints.keep_newest(self.max_checkpoints, self.best_step)
        finally:
            self.building = None

    def _write_with_all_ranks(
        self, trainer: Any, facts: Mapping[str, Any], write: Callable[[], None]
    ) -> None:
        """Write a checkpoint into a folder that rank 0 makes, seals and names.

        Every rank writes its random state, and holds a part of a model that is sharded. Raises
        OSError on all ranks if it fails on one.
        """
        problem: Exception | None = None
        with ExitStack() as stack:
            if self.run_files.rank.is_first:
                state = trainer.state
                adding = self.checkpoints.adding(state.global_step, state.max_steps, facts)
                try:
                    self._require_room_for_one(trainer)
                    self.building = stack.enter_context(adding)
                except OSError as error:
                    problem = error
            self.building = agreement.from_first(self.building)
            if self.building is not None:
                try:
                    write()
                except Exception as error:
                    problem = error
            if agreement.any_rank(problem is not None):
                raise problem or OSError(errno.EIO, "another process could not write it")

    def best_checkpoint(self) -> VerifiedCheckpoint | None:
        """Return the checkpoint of the best evaluation, if it is kept and good, to be loaded."""
        self.run_files.marks.begin("load")  # which may take longer than any part of a step
        return None if self.best_step is None else self.checkpoints.at(self.best_step)

    def save_result(self, write: Callable[[Path], None], step: int) -> None:
        """Write the result into `output`, completely or not at all. Raises TrainingError.

        `step` is that of its weights.
        """
        building = self.run_files.folder / ".output.new"
        try:
            if self.run_files.rank.is_first:
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir()
            agreement.wait_for_all()
            write(building / "output")
            if self.run_files.rank.is_first:
                seal(building / "output", {"step": step, "facts": self.facts})
                publish(building / "output", self.run_files.folder / "output")
        except Exception as error:
            if not is_disk_error(error):
                raise
            is_full = diagnose(error, "", "save").cause == "disk_full"
            raise TrainingError(
                f"The result could not be written: {_reason(error)}. "
                f"{self.last_checkpoint_sentence()} Make room, then resume the run.",
                cause="disk_full" if is_full else "not_writable",
                free_bytes=self._free_bytes(),
            ) from error
        finally:
            if self.run_files.rank.is_first:
                shutil.rmtree(building, ignore_errors=True)

    def last_checkpoint_sentence(self) -> str:
        """Return a sentence that says which checkpoint the run can be resumed from."""
        step = self.run_files.status.checkpoint_step
        if step is None:
            return "There is no checkpoint yet."
        return f"The checkpoint of step {step} is good."

    def _require_room_for_one(self, trainer: Any) -> None:
        """Raise OSError if a checkpoint would fill the disk. Half a checkpoint is of no use."""
        needed = self._expected_bytes(trainer)
        free = self._free_bytes()
        if needed > free:
            raise OSError(errno.ENOSPC, f"it takes {gib(needed)}, but only {gib(free)} is free")

    def _expected_bytes(self, trainer: Any) -> int:
        """Return the size of a checkpoint: that of the last one, else of weights and optimizer
        states."""
        if self._checkpoint_bytes:
            return self._checkpoint_bytes
        optim = OptimizerNames(trainer.args.optim).value
        return weight_bytes(trainer.model) + state_bytes(trainable(trainer.model), optim)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.run_files.folder).free


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that train."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def weight_bytes(model: nn.Module) -> int:
    """Return the size of the weights of a result: the adapter's, or those of the whole model."""
    is_adapter = hasattr(model, "peft_config")
    saved = trainable(model) if is_adapter else model.parameters()
    return sum(parameter.numel() * parameter.element_size() for parameter in saved)


def is_disk_error(error: Exception) -> bool:
    """Return True for anything that the libraries raise when a file cannot be written."""
    return isinstance(error, OSError) or diagnose(error, "", "save").cause == "disk_full"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return os.strerror(errno.ENOSPC)


def _num_checkpoints(trainer: Any) -> int:
    """Return how many checkpoints a whole training writes."""
    if trainer.args.save_strategy == "epoch":
        return math.ceil(trainer.state.num_train_epochs or 1)
    return math.ceil(trainer.state.max_steps / max(1, trainer.state.save_steps))
