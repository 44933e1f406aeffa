"""Saving: whether there is room and something worth keeping, checkpoints and the result, and what is said if not."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.training_args import OptimizerNames

from ..checkpoints.folder import Checkpoints, publish, seal
from ..contract.checkpoint_files import bytes_in, checkpoint_name
from ..contract.failures import TrainingError, diagnose, gib
from ..record.run_files import Record
from .divergence import are_numbers
from .probe import bytes_of_states

SPARE_BYTES = 32 * 2**20
"""For tokenizers, logs and metrics."""
SAVES_NOTHING = "TAILOR_SAVES_NOTHING"
"""Set where whoever started the program will end it before it saves, as the benchmarks do."""
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""Facts that may change while a run trains: how a step's rows are divided into passes."""


class Saver:
    """Writes the checkpoints and the result of one run."""

    def __init__(
        self, record: Record, checkpoints: Checkpoints, facts: Mapping[str, Any], limit: int
    ):
        """`limit`: good checkpoints that are kept."""
        self.record = record
        self.checkpoints = checkpoints
        self.facts = facts
        self.limit = limit
        self.building: Path | None = None
        """Where the trainer is to put the checkpoint that it is writing."""
        self._checkpoint_bytes = 0

    def require_room(self, trainer: Any) -> None:
        """Raises TrainingError if the disk cannot take the checkpoints and the result of the whole run."""
        if os.environ.get(SAVES_NOTHING):
            return
        each, result = self._expected_bytes(trainer), weight_bytes(trainer.model)
        count = _num_checkpoints(trainer)
        at_once = max(min(self.limit + 1, count) * each, min(self.limit, count) * each + result)
        needed = at_once + SPARE_BYTES - self.checkpoints.size_bytes()
        free = self._free_bytes()
        if needed > free:
            raise TrainingError(
                f"The checkpoints and the result will take {gib(needed)}, but only {gib(free)} is free on the disk of "
                f"{self.record.folder}. Make room, or keep fewer checkpoints than save_total_limit {self.limit}.",
                cause="disk_full",
                needed_bytes=needed,
                free_bytes=free,
            )

    def save(self, trainer: Any, write: Callable[[], None]) -> None:
        """Adds a checkpoint, then removes old ones. If it cannot be written, that is said and the training goes on."""
        step = trainer.state.global_step
        batch = {name: getattr(trainer.args, name) for name in BATCH}
        if not are_numbers(trainable(trainer.model)):
            self.record.warn(
                f"No checkpoint is kept of step {step}: its weights are no longer numbers."
            )
            return
        try:
            self._require_room_for_one(trainer)
            with self.checkpoints.adding(
                step, trainer.state.max_steps, {**self.facts, **batch}
            ) as self.building:
                write()
        except Exception as error:
            if not is_about_disk(error):
                raise
            self.record.warn(
                f"The checkpoint of step {step} was not written: {_reason(error)}. {self.last_good()}"
            )
        else:
            self._checkpoint_bytes = bytes_in(self.checkpoints.folder / checkpoint_name(step))
            self.record.sync()
            self.record.update(checkpoint_step=step, warning=None)
            self.checkpoints.keep_newest(self.limit)
        finally:
            self.building = None

    def save_result(self, write: Callable[[Path], None]) -> None:
        """Puts the result into `output`, whole or not at all. Raises TrainingError that says what to do."""
        building = self.record.folder / ".output.new"
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            write(building / "output")
            seal(building / "output", {"step": self.record.status.step, "facts": self.facts})
            publish(building / "output", self.record.folder / "output")
        except Exception as error:
            if not is_about_disk(error):
                raise
            raise TrainingError(
                f"The result could not be written: {_reason(error)}. {self.last_good()} "
                "Make room, then resume the run.",
                cause="disk_full"
                if diagnose(error, "", "save").cause == "disk_full"
                else "not_writable",
                free_bytes=self._free_bytes(),
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def last_good(self) -> str:
        """What there is to go on from, in a sentence."""
        step = self.record.status.checkpoint_step
        return (
            "There is no checkpoint yet."
            if step is None
            else f"The checkpoint of step {step} is good."
        )

    def _require_room_for_one(self, trainer: Any) -> None:
        """Raises OSError if a checkpoint would fill the disk: better not begun than begun in vain."""
        needed, free = self._expected_bytes(trainer), self._free_bytes()
        if needed > free:
            raise OSError(errno.ENOSPC, f"it takes {gib(needed)}, but only {gib(free)} is free")

    def _expected_bytes(self, trainer: Any) -> int:
        """What a checkpoint takes: as much as the last one, or weights and optimizer states."""
        states = bytes_of_states(trainable(trainer.model), OptimizerNames(trainer.args.optim).value)
        return self._checkpoint_bytes or weight_bytes(trainer.model) + states

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.record.folder).free


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that train."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def weight_bytes(model: nn.Module) -> int:
    """What the weights of a result take: those of the adapter, or the whole model."""
    is_adapter = hasattr(model, "peft_config")
    saved = trainable(model) if is_adapter else model.parameters()
    return sum(parameter.numel() * parameter.element_size() for parameter in saved)


def is_about_disk(error: Exception) -> bool:
    """True for whatever the libraries raise when a file cannot be written."""
    return isinstance(error, OSError) or diagnose(error, "", "save").cause == "disk_full"


def _reason(error: Exception) -> str:
    return (
        (error.strerror or str(error)) if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
    )


def _num_checkpoints(trainer: Any) -> int:
    """How many checkpoints a whole training writes."""
    if trainer.args.save_strategy == "epoch":
        return math.ceil(trainer.state.num_train_epochs or 1)
    return math.ceil(trainer.state.max_steps / max(1, trainer.state.save_steps))
