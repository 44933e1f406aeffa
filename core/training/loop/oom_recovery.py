"""Recovery from out-of-memory: continue with a smaller micro-batch in the same process.

Kept exactly: weights, optimizer states, learning rate, step count, and the rows of each optimizer
step, in their order. Not kept: the dropout masks of later steps, and rounding, because rows are
summed in other groups. With logging_steps above 1, the next logged loss is the mean of the steps
since the recovery.
"""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

RECOVERABLE_ACTIVITIES = frozenset({"forward", "backward"})
"""Activities whose memory grows with the rows. The optimizer step takes as much for one row, and
may be half done."""


def smaller_batch(rows: int, passes: int, min_rows: int = 1) -> tuple[int, int] | None:
    """Return (rows, passes) with at most half the rows and the same product; None if there is none.

    `min_rows` is the smallest micro-batch of the stage.
    """
    for count in range(rows // 2, min_rows - 1, -1):
        if rows % count == 0:
            return count, rows // count * passes
    return None


def resize_batch(trainer: Any, rows: int, passes: int) -> None:
    """Give a trainer another micro-batch, and free the memory of the step that failed."""
    args = trainer.args
    args.per_device_train_batch_size = rows
    args.gradient_accumulation_steps = passes
    args.per_device_eval_batch_size = min(rows, args.per_device_eval_batch_size)
    trainer._train_batch_size = args.train_batch_size
    trainer.state.train_batch_size = args.train_batch_size
    trainer.model.zero_grad(set_to_none=True)
    free_memory()


def free_memory() -> None:
    """Return memory that nothing refers to any more to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class InMemoryState:
    """Training state that survives the restart of the loop in this process: a checkpoint without
    weights.

    Weights, optimizer states and random numbers are in memory already.
    """

    def __init__(self, trainer: Any):
        self._scheduler = None
        self._learning_rates = []
        if trainer.lr_scheduler:
            self._scheduler = trainer.lr_scheduler.state_dict()
        if trainer.optimizer:
            self._learning_rates = [group["lr"] for group in trainer.optimizer.param_groups]

    def restore(self, trainer: Any) -> None:
        """Bring a new scheduler to the state of the old one, with its learning rates."""
        if self._scheduler:
            trainer.lr_scheduler.load_state_dict(self._scheduler)
        groups = trainer.optimizer.param_groups
        for group, learning_rate in zip(groups, self._learning_rates, strict=False):
            group["lr"] = learning_rate


@contextmanager
def saved_trainer_state(trainer: Any) -> Iterator[str]:
    """Yield a temporary folder with trainer_state.json, from which a trainer reads its step as from
    a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.state.save_to_json(f"{folder}/trainer_state.json")
        yield folder
