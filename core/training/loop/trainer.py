"""A trainer that is watched: it says where it is, saves what can be trusted, goes on when memory did not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerState

from ..checkpoints.folder import VerifiedCheckpoint
from ..contract.failures import Stopped, TrainingError, diagnose
from ..model.load import cast_adapters
from .divergence import Health
from .oom_recovery import (
    STEPS_THAT_GROW_WITH_ROWS,
    Bookmark,
    cut_batch,
    folder_of_state,
    free_memory,
    smaller_batch,
)
from .saver import trainable

if TYPE_CHECKING:
    from .monitor import Watch


class Watched(Trainer):
    """Put in front of any trainer of TRL, tells a Watch where the training is."""

    model: Any
    watch: "Watch"
    adapter_dtype: torch.dtype | None
    """What all that an adapter trains is kept in; None as it was made."""

    def __init__(self, watch: "Watch", adapter_dtype: torch.dtype | None, **kwargs: Any):
        self.watch, self.adapter_dtype = watch, adapter_dtype
        self._bookmark: Bookmark | None = None
        self._losses: list[torch.Tensor] = []
        self._grad_norm: Any = None
        self._tokens_before = 0
        watch.trainer = self
        super().__init__(callbacks=[watch], **kwargs)
        self._cast_adapters()
        has_scaler = getattr(self.accelerator, "scaler", None) is not None
        watch.health = Health(has_scaler=has_scaler, draws_answers=self.draws_answers)

    @property
    def draws_answers(self) -> bool:
        """True for the stages that learn from answers which the model draws while it trains."""
        return hasattr(self.args, "num_generations")

    def count_trainable(self) -> int:
        """How many numbers train. Raises TrainingError if it is none."""
        count = sum(parameter.numel() for parameter in trainable(self.model))
        if count == 0:
            raise TrainingError(
                "Nothing would train: every weight is frozen. Look at method and target_modules."
            )
        return count

    # A step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._losses.clear()
        self._tokens_before = getattr(self, "_total_train_tokens", 0)
        self.watch.stopwatch.begin("data")
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self.watch.stopwatch.begin(None)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.watch.begin("forward")
        loss = super().training_step(*args, **kwargs)
        self.watch.end()
        self._losses.append(loss)
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.watch.record.activity == "forward":  # not in an evaluation
            self.watch.begin("backward")
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._grad_norm = super()._get_grad_norm(*args, **kwargs)
        return self._grad_norm

    def send_beat(self, health: Health) -> None:
        """Hands over the loss and the gradient of the step that has just ended."""
        losses, self._losses = self._losses, []
        if losses and self._grad_norm is not None:
            health.send(
                self.state.global_step, torch.stack(losses).sum(), torch.as_tensor(self._grad_norm)
            )

    # Out of memory

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; out of memory at a step, goes on from the last completed one with fewer rows at once, if allowed."""
        try:
            return super().train(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            smaller = self._smaller_batch(error)
            if smaller is None:
                raise
        # out here, nothing refers to the tensors of the failed step any more
        self._total_train_tokens = self._tokens_before
        self._bookmark = Bookmark(self)
        cut_batch(self, *smaller)
        with folder_of_state(self) as folder:
            return self.train(resume_from_checkpoint=folder)

    def _smaller_batch(self, error: torch.OutOfMemoryError) -> tuple[int, int] | None:
        record = self.watch.record
        activity = record.activity or ""
        smaller = smaller_batch(self)
        if (
            not self.watch.job.halve_batch_on_oom
            or activity not in STEPS_THAT_GROW_WITH_ROWS
            or smaller is None
        ):
            return None
        self.watch.end()
        rows, passes = smaller
        record.note(
            f"{diagnose(error, '', activity).sentence} From step {self.state.global_step + 1} on {rows} "
            f"{'row' if rows == 1 else 'rows'} at once, {passes} times a step: the same batch, in smaller parts."
        )
        return smaller

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """An evaluation that is cut short by a wish to stop yields nothing. None disturbs the random numbers.

        A loader draws one when it starts: without the fork a run that was stopped and resumed at an evaluation would
        differ from one that was not.
        """
        try:
            with self.watch.aside("eval"), torch.random.fork_rng():
                return super().evaluate(*args, **kwargs)
        except Stopped:
            self.watch.stop(self.state, self.control)
            return {}
        except torch.OutOfMemoryError:
            if not self.watch.job.halve_batch_on_oom or self.args.per_device_eval_batch_size == 1:
                raise
        rows = self.args.per_device_eval_batch_size = self.args.per_device_eval_batch_size // 2
        self.watch.record.note(
            f"Out of GPU memory in the evaluation: from here on it takes {rows} rows at once."
        )
        free_memory()
        return self.evaluate(*args, **kwargs)

    # Checkpoints

    def restore(self, checkpoint: VerifiedCheckpoint) -> None:
        """Takes over the weights of a checkpoint that has all its steps."""
        self._load_from_checkpoint(str(checkpoint.folder))
        self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self.watch.on_train_begin(self.args, self.state, self.control)

    def save_result(self) -> None:
        """Puts the result into the run's folder `output`. Raises TrainingError if it cannot be written."""
        with self.watch.aside("save"):
            self.watch.saver.save_result(lambda folder: self.save_model(str(folder)))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.watch.saver.building or super()._get_output_dir(trial))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        write = super()._save_checkpoint
        with self.watch.aside("save"):
            self.watch.saver.save(self, lambda: write(*args, **kwargs))

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self._bookmark is None:  # else the weights are in memory
            super()._load_from_checkpoint(*args, **kwargs)
            self._cast_adapters()

    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        if self._bookmark is None:
            with loading_into_pages(getattr(self.optimizer, "optimizer", self.optimizer)):
                super()._load_optimizer_and_scheduler(*args, **kwargs)
        else:
            self._bookmark.restore(self)

    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        if self._bookmark is None:
            super()._load_rng_state(*args, **kwargs)

    def _load_scaler(self, *args: Any, **kwargs: Any) -> None:
        if self._bookmark is None:
            super()._load_scaler(*args, **kwargs)

    def _cast_adapters(self) -> None:
        if self.adapter_dtype is not None:
            cast_adapters(self.model, self.adapter_dtype)


@contextmanager
def loading_into_pages(optimizer: Any) -> Iterator[None]:
    """Lets a paged optimizer of bitsandbytes load its states to where they can be paged out.

    By itself it makes plain tensors of them on the device, all at once; here they stay in main memory until each is
    copied into a buffer of its own. The first step moves the rest (load_state_dict, get_state_buffer and to_gpu in
    bitsandbytes/optim/optimizer.py).
    """
    if not getattr(optimizer, "is_paged", False):
        yield
        return
    optimizer.load_state_dict = partial(optimizer.load_state_dict, move_to_device=False)
    yield
    del optimizer.load_state_dict
    for parameter, state in optimizer.state.items():
        for name in {"state1", "state2"} & state.keys():
            buffer = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the host writes into what a kernel has just been told to fill
            state[name] = buffer.copy_(state[name])
