"""Trainer base class: reports activities, saves checkpoints and recovers from out-of-memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState
from transformers.integrations.neftune import deactivate_neftune

from ..checkpoints import VerifiedCheckpoint
from ..contract.failures import Stopped, TrainingError, diagnose
from ..contract.stages import STAGES
from ..model.adapter import checkpoint_mismatch, require_same_adapter
from ..model.load import cast_adapters
from ..ranks import agreement
from .divergence import DivergenceMonitor
from .losses import Count, EvalMeans, StepCounts, TokenTerm, count_rows, perplexity
from .monitor import EndedEarly, MonitorCallback
from .oom_recovery import (
    RECOVERABLE_ACTIVITIES,
    InMemoryState,
    free_memory,
    resize_batch,
    saved_trainer_state,
    smaller_batch,
)
from .row_order import RowOrder
from .saver import trainable
from .schedule import begin_restart, join_schedules, schedule_settings, split_groups


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
        self.step_counts = StepCounts(0, 0)
        """Counts of the optimizer step that is being computed."""
        self.token_term: TokenTerm | None = None
        """Part of the last loss that is a mean over tokens, for losses that have one."""
        self._eval_means = EvalMeans(averages_tokens=False)
        monitor.trainer = self
        super().__init__(callbacks=[monitor, RowOrder()], **kwargs)
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

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Create the scheduler. With lr_restart_step, warm-up and schedule begin again after it."""
        restart_step = self.monitor.job.lr_restart_step
        if self.lr_scheduler is not None or not 0 < restart_step < num_training_steps:
            return self._create_schedule(num_training_steps, *args, **kwargs)
        parts = []
        for num_steps in (restart_step, num_training_steps - restart_step):
            self.lr_scheduler = None
            parts.append(self._create_schedule(num_steps, *args, **kwargs).lr_lambdas[0])
        schedule = join_schedules(parts[0], parts[1], restart_step)
        optimizer: Any = kwargs.get("optimizer") or (args[0] if args else self.optimizer)
        self.lr_scheduler = LambdaLR(optimizer, schedule)
        return self.lr_scheduler

    def _create_schedule(self, num_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Create one schedule. Warm-up begins at 0 and leaves at least the last step to learn."""
        asked = self.args.warmup_steps
        num_warmup_steps = min(self.args.get_warmup_steps(num_steps), num_steps - 1)
        settings = schedule_settings(self.monitor.job, num_steps, num_warmup_steps)
        self.args.warmup_steps = num_warmup_steps
        self.args.lr_scheduler_kwargs = settings
        scheduler = super().create_scheduler(num_steps, *args, **kwargs)
        self.args.warmup_steps = asked
        return scheduler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer. With LoRA+ the B matrices learn faster."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        ratio = self.monitor.job.loraplus_lr_ratio
        if is_new and ratio and self.monitor.job.trains_adapter:
            split_groups(optimizer, self.model, ratio)
        return optimizer

    # A step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Called once per optimizer step: loads its micro-batches."""
        self.monitor.divergence.begin_step()
        self._tokens_before_step = getattr(self, "_total_train_tokens", 0)
        self.monitor.stopwatch.begin("data")
        try:
            batches, num_items = super().get_batch_samples(*args, **kwargs)
        finally:
            self.monitor.stopwatch.begin(None)
        self.step_counts = self._counts_of_step(batches)
        return batches, num_items

    def _counts_of_step(self, batches: Sequence[Any]) -> StepCounts:
        """Return the counts by which micro-batches are weighted.

        There are none where TRL weights them itself, or where all are equally large.
        """
        stage = self.monitor.stage
        num_micro_batches = len(batches) * agreement.count()
        if stage.loss == "likelihood" or stage.generates or num_micro_batches < 2:
            return StepCounts(len(batches), 0)
        num_rows: float = sum(count_rows(batch) for batch in batches)
        num_tokens: Count | float = sum(self.count_term_tokens(batch) for batch in batches)
        if agreement.count() > 1:
            sums = agreement.total([num_rows, float(num_tokens)])
            num_rows, num_tokens = (each / agreement.count() for each in sums)
        return StepCounts(len(batches), num_rows, num_tokens)

    def count_term_tokens(self, inputs: Any) -> Count:
        """Return the tokens of the part of the loss that is a mean over tokens, 0 without one."""
        return 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.monitor.begin("forward")
        loss = super().training_step(*args, **kwargs)
        self.monitor.end()
        self.monitor.divergence.add_loss(loss)
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(*args, **kwargs)
        if self.monitor.run_files.activity == "forward":  # not in an evaluation
            loss = self._weighted_in_step(loss, args[1] if len(args) > 1 else kwargs["inputs"])
            self.monitor.begin("backward")
        return loss

    def _weighted_in_step(self, loss: torch.Tensor, inputs: Any) -> torch.Tensor:
        """Weight the loss of a micro-batch by its rows, and a term over tokens by its tokens.

        Then the loss of a step does not depend on how its rows are divided into micro-batches.
        """
        term, self.token_term = self.token_term, None
        if not self.step_counts.num_rows:
            return loss
        row_share = self.step_counts.row_share(inputs)
        if term is None:
            return loss if row_share == 1 else loss * row_share
        token_share = self.step_counts.token_share(term.num_tokens)
        return loss * row_share + term.weight * term.mean * (token_share - row_share)

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
        except EndedEarly:
            return None
        except torch.OutOfMemoryError as error:
            batch = self._recovery_batch(error)
            if batch is None:
                raise
        # Outside the except block nothing refers to the tensors of the failed step any more.
        self._total_train_tokens = self._tokens_before_step
        self._in_memory_state = InMemoryState(self)
        if self.neftune_noise_alpha is not None:  # else the next start would add noise twice
            deactivate_neftune(self.model, self.neftune_hook_handle, self.accelerator)
        resize_batch(self, *batch)
        with saved_trainer_state(self) as folder:
            return self.train(resume_from_checkpoint=folder)

    def _recovery_batch(self, error: torch.OutOfMemoryError) -> tuple[int, int] | None:
        """Return (rows, passes) to continue with, and note it in the run folder; None if that is
        not possible."""
        activity = self.monitor.run_files.activity or ""
        if not self.monitor.job.halve_batch_on_oom or activity not in RECOVERABLE_ACTIVITIES:
            return None
        if agreement.count() > 1:  # the other ranks wait in the middle of their step
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
        num_rows, passes = batch
        rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
        self.monitor.run_files.note(
            f"{diagnose(error, '', activity).sentence} From step {self.state.global_step + 1} on "
            f"{rows} at once, {passes} times a step: the same batch, in smaller parts."
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
            fewest = STAGES[self.monitor.job.stage].min_batch_size
            can_halve = self.args.per_device_eval_batch_size > fewest and agreement.count() == 1
            if not self.monitor.job.halve_batch_on_oom or not can_halve:
                raise
        self.args.per_device_eval_batch_size //= 2
        self.monitor.run_files.note(
            "Out of GPU memory in the evaluation: from here on it takes "
            f"{self.args.per_device_eval_batch_size} rows at once."
        )
        free_memory()
        return self.evaluate(*args, **kwargs)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return a loader of all rows on every rank.

        Then the loss is that of one device, to the digit: accelerate would repeat rows until each
        rank has as many, and those would count twice.
        """
        loader = super().get_eval_dataloader(*args, **kwargs)
        if agreement.count() > 1:
            shard: Any = loader.batch_sampler
            shard.num_processes, shard.process_index = 1, 0  # as transformers does for its own
        return loader

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate all batches. The loss is the mean over all counted tokens, or over all rows in
        stages whose loss compares whole answers; transformers averages the means of the batches."""
        averages_tokens = self.monitor.stage.loss == "likelihood"
        self._eval_means = EvalMeans(averages_tokens)
        output: Any = super().evaluation_loop(*args, **kwargs)
        for kept in (getattr(self, "_metrics", {}), getattr(self, "_stored_metrics", {})):
            self._eval_means.average(kept.get("eval", {}))
        loss = self._eval_means.mean()
        output.metrics["eval_loss"] = loss
        if averages_tokens:
            output.metrics["eval_perplexity"] = perplexity(loss)
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None:
            self._eval_means.add(loss, inputs, self.token_term)
        self.token_term = None
        return loss, logits, labels

    # Checkpoints

    def restore(self, checkpoint: VerifiedCheckpoint) -> None:
        """Load the weights of a checkpoint that has all steps, without training."""
        self._load_from_checkpoint(str(checkpoint.folder))
        self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self.monitor.on_train_begin(self.args, self.state, self.control)

    def load_best(self) -> int:
        """Load the weights of the best checkpoint, if the job keeps one. Return the step of the
        weights that the model has now."""
        last_step = self.state.global_step
        best_step = self.monitor.saver.best_step
        if best_step is None or best_step == last_step:
            return last_step
        checkpoint = self.monitor.saver.best_checkpoint()
        if checkpoint is None:
            self.monitor.run_files.note(
                f"The result is that of the last step: the checkpoint of the best step "
                f"{best_step:,} is missing or damaged."
            )
            return last_step
        self._in_memory_state = None  # of a recovery: the checkpoint must be loaded now
        self._load_from_checkpoint(str(checkpoint.folder))
        return best_step

    def save_result(self, step: int) -> None:
        """Write the result, with the weights of a step, into the run's folder `output`.

        Raises TrainingError if it cannot be written.
        """
        with self.monitor.outside_training("save"):
            self.monitor.saver.save_result(self._write_result, step)

    def _write_result(self, folder: Path) -> None:
        self.save_model(str(folder))
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if isinstance(ends, list) and hasattr(self.model, "peft_config"):
            # An adapter is saved without the settings that say where answers end.
            self.model.generation_config.save_pretrained(str(folder))

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
            require_same_adapter(self.model, Path(args[0]))
            self._cast_adapters()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # transformers only logs which weights a checkpoint lacks, and trains with the others.
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        differing = [*missing, *load_result.unexpected_keys]
        if differing:
            raise checkpoint_mismatch(differing)

    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        if self._in_memory_state is None:
            optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
            with paged_state_loading(optimizer):
                super()._load_optimizer_and_scheduler(*args, **kwargs)
            if self.lr_scheduler is not None:
                begin_restart(self.lr_scheduler, self.monitor.job.lr_restart_step)
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
