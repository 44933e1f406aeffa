"""Trainer base class: reports activities, writes verified checkpoints and recovers from
out-of-memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainerState

from ..checkpoints import VerifiedCheckpoint
from ..contract.failures import Stopped, TrainingError, diagnose
from ..model.load import cast_adapters
from .divergence import DivergenceMonitor
from .monitor import MonitorCallback
from .oom_recovery import (
    RECOVERABLE_ACTIVITIES,
    InMemoryState,
    free_memory,
    resize_batch,
    saved_trainer_state,
    smaller_batch,
)
from .saver import trainable


class MonitoredTrainer(Trainer):
    """Mixin in front of a trainer of TRL: `class Trained(MonitoredTrainer, SFTTrainer)`.

    transformers has callbacks around a step, but none within it. So this class overrides the
    methods that a step calls, in this order, and tells the monitor which activity begins:

        get_batch_samples   data
        training_step       forward, once per micro-batch
          compute_loss        backward begins when it returns
        _get_grad_norm      (the callback on_pre_optimizer_step begins the optimizer step)
    """

    model: Any
    monitor: MonitorCallback
    adapter_dtype: torch.dtype | None
    """Precision of everything that an adapter trains; None leaves it as PEFT made it."""

    def __init__(self, monitor: MonitorCallback, adapter_dtype: torch.dtype | None, **kwargs: Any):
        self.monitor = monitor
        self.adapter_dtype = adapter_dtype
        self._in_memory_state: InMemoryState | None = None
        """Set after out-of-memory recovery: the loop then resumes from memory instead of a
        checkpoint."""
        self._tokens_before_step = 0
        monitor.trainer = self
        super().__init__(callbacks=[monitor], **kwargs)
        self._cast_adapters()
        has_scaler = getattr(self.accelerator, "scaler", None) is not None
        monitor.divergence = DivergenceMonitor(
            has_scaler=has_scaler, generates=monitor.stage.generates
        )

    def count_trainable(self) -> int:
        """Return the number of trainable parameters. Raises TrainingError if there are none."""
        count = sum(parameter.numel() for parameter in trainable(self.model))
        if count == 0:
            raise TrainingError(
                "Nothing would train: every weight is frozen. Look at method and target_modules."
            )
        return count

    # A step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Called once per optimizer step: loads its micro-batches."""
        self.monitor.divergence.begin_step()
        self._tokens_before_step = getattr(self, "_total_train_tokens", 0)
        self.monitor.stopwatch.begin("data")
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self.monitor.stopwatch.begin(None)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.monitor.begin("forward")
        loss = super().training_step(*args, **kwargs)
        self.monitor.end()
        self.monitor.divergence.add_loss(loss)
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.monitor.run_files.activity == "forward":  # not in an evaluation
            self.monitor.begin("backward")
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        grad_norm = super()._get_grad_norm(*args, **kwargs)
        if grad_norm is not None:
            self.monitor.divergence.set_grad_norm(grad_norm)
        return grad_norm

    # Out of memory

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train. After out-of-memory in a step, continue from the last completed step with fewer
        rows at once."""
        try:
            return super().train(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            batch = self._recovery_batch(error)
            if batch is None:
                raise
        # Outside the except block nothing refers to the tensors of the failed step any more.
        self._total_train_tokens = self._tokens_before_step
        self._in_memory_state = InMemoryState(self)
        resize_batch(self, *batch)
        with saved_trainer_state(self) as folder:
            return self.train(resume_from_checkpoint=folder)

    def _recovery_batch(self, error: torch.OutOfMemoryError) -> tuple[int, int] | None:
        """Return (rows, passes) to continue with, and note it in the run folder; None if that is
        not possible."""
        activity = self.monitor.run_files.activity or ""
        if not self.monitor.job.halve_batch_on_oom or activity not in RECOVERABLE_ACTIVITIES:
            return None
        stage = self.monitor.stage
        if stage.generates:  # its trainers plan the batches of several steps ahead
            return None
        args = self.args
        batch = smaller_batch(
            args.per_device_train_batch_size, args.gradient_accumulation_steps, stage.min_batch_size
        )
        if batch is None:
            return None
        self.monitor.end()
        rows, passes = batch
        self.monitor.run_files.note(
            f"{diagnose(error, '', activity).sentence} From step {self.state.global_step + 1} on "
            f"{rows} {'row' if rows == 1 else 'rows'} at once, {passes} times a step: the same "
            "batch, in smaller parts."
        )
        return batch

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate. Returns no metrics if a stop request cuts it short; after out-of-memory, tries
        with half the rows.

        A data loader draws a random number when it starts. Without the fork, a run that was stopped
        and resumed at an evaluation would differ from one that was not.
        """
        try:
            with self.monitor.outside_training("eval"), torch.random.fork_rng():
                return super().evaluate(*args, **kwargs)
        except Stopped:
            self.monitor.stop(self.state, self.control)
            return {}
        except torch.OutOfMemoryError:
            can_halve = self.args.per_device_eval_batch_size > 1
            if not self.monitor.job.halve_batch_on_oom or not can_halve:
                raise
        self.args.per_device_eval_batch_size //= 2
        self.monitor.run_files.note(
            "Out of GPU memory in the evaluation: from here on it takes "
            f"{self.args.per_device_eval_batch_size} rows at once."
        )
        free_memory()
        return self.evaluate(*args, **kwargs)

    # Checkpoints

    def restore(self, checkpoint: VerifiedCheckpoint) -> None:
        """Load the weights of a checkpoint that has all steps, without training."""
        self._load_from_checkpoint(str(checkpoint.folder))
        self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self.monitor.on_train_begin(self.args, self.state, self.control)

    def save_result(self) -> None:
        """Write the result into the run's folder `output`. Raises TrainingError if it cannot be
        written."""
        with self.monitor.outside_training("save"):
            self.monitor.saver.save_result(lambda folder: self.save_model(str(folder)))

    def _get_output_dir(self, trial: Any) -> str:
        # transformers puts checkpoint-<step> into this folder.
        return str(self.monitor.saver.building or super()._get_output_dir(trial))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        write = super()._save_checkpoint
        with self.monitor.outside_training("save"):
            self.monitor.saver.save(self, lambda: write(*args, **kwargs))

    # After out-of-memory recovery, transformers "resumes" from a folder that holds only the step.
    # What a checkpoint would also hold is in memory, and must not be loaded.

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self._in_memory_state is None:
            super()._load_from_checkpoint(*args, **kwargs)
            self._cast_adapters()

    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        if self._in_memory_state is None:
            optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
            with paged_state_loading(optimizer):
                super()._load_optimizer_and_scheduler(*args, **kwargs)
        else:
            self._in_memory_state.restore(self)

    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        if self._in_memory_state is None:
            super()._load_rng_state(*args, **kwargs)

    def _load_scaler(self, *args: Any, **kwargs: Any) -> None:
        if self._in_memory_state is None:
            super()._load_scaler(*args, **kwargs)

    def _cast_adapters(self) -> None:
        if self.adapter_dtype is not None:
            cast_adapters(self.model, self.adapter_dtype)


@contextmanager
def paged_state_loading(optimizer: Any) -> Iterator[None]:
    """Let a paged optimizer of bitsandbytes load its states into memory that can be paged out.

    By itself it makes plain tensors of all states on the device at once. Here they stay in main
    memory until each is copied into a paged buffer; the first step moves the rest (load_state_dict,
    get_state_buffer and to_gpu in bitsandbytes/optim/optimizer.py).
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
                torch.cuda.synchronize()  # a kernel that fills the new buffer may still be running
            state[name] = buffer.copy_(state[name])
