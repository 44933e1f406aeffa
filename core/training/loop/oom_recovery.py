"""Going on with a smaller batch after the GPU's memory did not suffice for one, in the same process.

Kept exactly: weights, optimizer states, learning rate, step count, and which rows make up each optimizer step, in which
order. Not kept: the masks of dropout in the steps after, and rounding, because rows are summed up in other groups. With
logging_steps above 1, the next line's mean loss is that of the steps since.
"""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

STEPS_THAT_GROW_WITH_ROWS = frozenset({"forward", "backward"})
"""Where fewer rows help; the optimizer step needs as much for one row as for many, and may be half done."""


def smaller_batch(trainer: Any) -> tuple[int, int] | None:
    """(rows at once, passes per step) with half the rows or fewer and the same product; None if there is no such.

    A trainer that draws answers plans its batches ahead; KTO compares a row with others of its batch.
    """
    rows, passes = (
        trainer.args.per_device_train_batch_size,
        trainer.args.gradient_accumulation_steps,
    )
    fewest = 2 if getattr(trainer, "calculate_KL", False) else 1
    if trainer.draws_answers:
        return None
    fitting = (count for count in range(rows // 2, fewest - 1, -1) if rows % count == 0)
    count = next(fitting, None)
    return (count, rows // count * passes) if count else None


def cut_batch(trainer: Any, rows: int, passes: int) -> None:
    """Gives a trainer another batch, and back the memory of the step that failed."""
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = (
        rows,
        passes,
    )
    trainer.args.per_device_eval_batch_size = min(rows, trainer.args.per_device_eval_batch_size)
    trainer._train_batch_size = trainer.state.train_batch_size = trainer.args.train_batch_size
    trainer.model.zero_grad(set_to_none=True)
    free_memory()


def free_memory() -> None:
    """Hands back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Bookmark:
    """Where a training stands that goes on in the same process: a checkpoint without weights, which are in memory."""

    def __init__(self, trainer: Any):
        self._scheduler = trainer.lr_scheduler.state_dict() if trainer.lr_scheduler else None
        self._learning_rates = (
            [group["lr"] for group in trainer.optimizer.param_groups] if trainer.optimizer else []
        )

    def restore(self, trainer: Any) -> None:
        """Brings a new scheduler to where the old one was; making it has reset the learning rates."""
        if self._scheduler:
            trainer.lr_scheduler.load_state_dict(self._scheduler)
        for group, learning_rate in zip(
            trainer.optimizer.param_groups, self._learning_rates, strict=False
        ):
            group["lr"] = learning_rate


@contextmanager
def folder_of_state(trainer: Any) -> Iterator[str]:
    """A folder that tells a trainer its step, as a checkpoint does."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.state.save_to_json(f"{folder}/trainer_state.json")
        yield folder
