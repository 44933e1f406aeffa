"""Watches a trainer: reports steps, metrics and peaks to the record, and ends the training when asked to."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .failure import Stopped
from .load import cast_adapters
from .meter import Meter
from .probe import has_limited_memory, probe
from .record import Checkpoint, Phase, Record

NOT_METRICS = frozenset(
    {"epoch", "num_tokens", "eval_num_tokens", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
)


class Watch(TrainerCallback):
    """What happens in a training, told to the record; and the user's wish to stop, told to the training."""

    def __init__(self, record: Record, meter: Meter, num_tokens: int):
        """`num_tokens`: those that earlier lives of the run have trained on."""
        self.record = record
        self.meter = meter
        self.was_stopped = False
        self.trainer: Watched | None = None
        self._num_tokens_before = num_tokens
        self._num_tokens = 0
        self._seconds = time.monotonic()
        self._saved_step = -1

    def begin(self, activity: str) -> None:
        """Forward, backward or optimizer step begins."""
        self.record.activity = activity
        self.meter.enter(activity)

    def end(self) -> None:
        """It is over, and the next has not begun."""
        self.meter.leave()
        self.record.activity = None

    @contextmanager
    def aside(self, phase: Phase) -> Iterator[None]:
        """Something other than training: it has a phase of its own, and its time does not slow the training down."""
        began = time.monotonic()
        self.record.update(phase=phase)
        self.meter.enter(phase)
        yield
        self.meter.leave()
        self._seconds += time.monotonic() - began
        self.record.update(phase="train", **self.peaks())

    def peaks(self) -> dict[str, Any]:
        """The measured peaks, named as in status.json."""
        return {"phase_peak_bytes": dict(self.meter.peaks), **self.meter.gauge.highest()}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.record.update(
            state="running",
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=float(state.epoch or 0),
            num_train_epochs=float(state.num_train_epochs if args.max_steps > 0 else args.num_train_epochs),
        )
        if self.trainer is not None and has_limited_memory() and state.global_step < state.max_steps:
            probe(self.trainer)
        self._seconds = time.monotonic()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.begin("optimizer_step")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.end()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        if self.record.is_stop_requested():
            self.record.update(state="stopping")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.record.update(step=state.global_step, epoch=float(state.epoch or 0))
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last step always has a line
        if self.record.is_stop_requested():
            self.stop(state, control)

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        if self.record.is_stop_requested():
            raise Stopped

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        values = {name: float(value) for name, value in logs.items() if name not in NOT_METRICS and _is_number(value)}
        if "eval_loss" in values:
            self.record.append_metrics(state.global_step, float(state.epoch or 0), values)
        elif "loss" in values:
            values |= self._progress(int(logs.get("num_tokens", self._num_tokens))) | self.meter.gauge.readings()
            self.record.append_metrics(state.global_step, float(state.epoch or 0), values)
            self.record.update(**self.peaks())
            if args.disable_tqdm:  # no terminal: a line for the log
                print(f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}", flush=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved_step = state.global_step

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self._saved_step:
            control.should_save = False  # the last step of the epoch has just been saved

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """Ends the training after this step, with a checkpoint; at the last step it ends by itself."""
        self.record.update(state="stopping")
        control.should_evaluate = False
        if state.global_step < state.max_steps:
            self.was_stopped = True
            control.should_log = control.should_save = control.should_training_stop = True

    def _progress(self, num_tokens: int) -> dict[str, float]:
        """Tokens trained on so far, and per second since the last line; TRL counts real tokens, no padding."""
        now = time.monotonic()
        new_tokens, seconds = num_tokens - self._num_tokens, now - self._seconds
        self._num_tokens, self._seconds = num_tokens, now
        return {
            "num_tokens": self._num_tokens_before + num_tokens,
            "tokens_per_second": new_tokens / max(seconds, 1e-9),
        }


class Watched(Trainer):
    """Put in front of any trainer of TRL, tells a Watch where the training is."""

    model: Any
    watch: Watch
    adapter_dtype: torch.dtype | None
    """What adapters over a quantised base are kept in; None for any other."""

    def __init__(self, watch: Watch, adapter_dtype: torch.dtype | None, **kwargs: Any):
        self.watch, self.adapter_dtype = watch, adapter_dtype
        watch.trainer = self
        super().__init__(callbacks=[watch], **kwargs)
        self._cast_adapters()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.watch.begin("forward")
        loss = super().training_step(*args, **kwargs)
        self.watch.end()
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.watch.record.activity == "forward":  # not in an evaluation
            self.watch.begin("backward")
        return loss

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

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over the weights of a checkpoint that has all its steps."""
        self._load_from_checkpoint(str(checkpoint.folder))
        self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self.watch.on_train_begin(self.args, self.state, self.control)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.watch.aside("save"):
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        self._cast_adapters()

    def _cast_adapters(self) -> None:
        if self.adapter_dtype is not None:
            cast_adapters(self.model, self.adapter_dtype)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
