"""Watches a trainer: reports steps, metrics and peaks to the record, and ends the training when asked to or when it has
stopped learning.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..contract.failures import Stopped, TrainingError
from ..contract.job import Job
from ..contract.states import Phase
from ..contract.status import Progress
from ..record.run_files import Record, say
from .divergence import Health, are_numbers
from .meter import Meter
from .probe import has_limited_memory, probe
from .saver import BATCH, Saver, trainable
from .stopwatch import stopwatch_here
from .trainer import Watched

__all__ = ["Watch", "Watched"]

NOT_METRICS = frozenset(
    {
        "epoch",
        "num_tokens",
        "eval_num_tokens",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
    }
)
WEIGHT_OF_LAST_STEP = 0.2
"""In the mean of seconds per step."""


class Watch(TrainerCallback):
    """What happens in a training, told to the record; and the user's wish to stop, told to the training."""

    def __init__(self, record: Record, meter: Meter, saver: Saver, job: Job, num_tokens: int = 0):
        """`num_tokens`: those that earlier lives of the run have trained on."""
        self.record = record
        self.meter = meter
        self.saver = saver
        self.job = job
        self.was_stopped = False
        self.trainer: Watched | None = None
        self.answer: Callable[[int], None] | None = None
        """Answers the samples at a step."""
        self.health = Health()
        self.stopwatch = stopwatch_here()
        self._num_tokens_before = num_tokens
        self._num_tokens = 0
        self._first_step: int | None = None
        self._logged_step = 0
        self._lap_began = self._step_began = time.monotonic()
        self._saved_step = -1
        self._num_predicted = 0

    # Where the training is

    def begin(self, activity: str) -> None:
        """Forward, backward or optimizer step begins."""
        self.record.activity = activity
        self.meter.enter(activity)
        self.stopwatch.begin(activity)

    def end(self) -> None:
        """It is over, and the next has not begun."""
        self.meter.leave()
        self.stopwatch.begin(None)
        self.record.activity = None

    @contextmanager
    def aside(self, phase: Phase, *, is_measured: bool = True) -> Iterator[None]:
        """Something other than training: it has a phase of its own, and its time does not slow the training down."""
        began, self._num_predicted = time.monotonic(), 0
        self.record.update(phase=phase)
        with self.meter.measured(phase) if is_measured else self.meter.unmeasured():
            yield
        seconds = time.monotonic() - began
        self._lap_began += seconds
        self._step_began += seconds
        self.record.update(phase="train", **self.peaks())

    def peaks(self) -> dict[str, Any]:
        """The measured peaks, named as in status.json."""
        return {"phase_peak_bytes": dict(self.meter.peaks), **self.meter.gauge.highest()}

    # What the trainer calls

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._first_step = state.global_step if self._first_step is None else self._first_step
        self._logged_step = state.global_step
        self.record.update(
            state="running",
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=float(state.epoch or 0),
            num_train_epochs=float(
                state.num_train_epochs if args.max_steps > 0 else args.num_train_epochs
            ),
            **{name: getattr(args, name) for name in BATCH},
        )
        self._stop_without_a_step(state)
        if self.trainer is not None and state.global_step < state.max_steps:
            self.saver.require_room(self.trainer)
            if has_limited_memory():
                probe(self.trainer)
        self.stopwatch = stopwatch_here()  # what the probe took is nobody's
        self._lap_began = self._step_began = time.monotonic()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.begin("optimizer_step")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.end()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._stop_without_a_step(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._say_step(state)
        self._check_health(state)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last step always has a line
        if self.record.is_stop_requested():
            self.stop(state, control)
        elif self.answer and self._is_sample_step(state):
            with self.aside("eval", is_measured=False):
                self.answer(state.global_step)

    def on_prediction_step(self, *_: Any, eval_dataloader: Any = None, **__: Any) -> None:
        if self.record.is_stop_requested():
            raise Stopped
        self._num_predicted += 1
        self.record.update(
            progress=Progress(
                "evaluating", self._num_predicted, _length(eval_dataloader), "batches"
            )
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        values = {
            name: float(value)
            for name, value in logs.items()
            if name not in NOT_METRICS and _is_number(value)
        }
        if "eval_loss" in values:
            self.record.append_metrics(state.global_step, float(state.epoch or 0), values)
        elif "loss" in values:
            values |= (
                self._lap(state, int(logs.get("num_tokens", self._num_tokens)))
                | self.meter.gauge.readings()
            )
            self.record.append_metrics(state.global_step, float(state.epoch or 0), values)
            self.record.update(**self.peaks())
            if args.disable_tqdm:  # no terminal: a line for the log
                say(f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved_step = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == self._saved_step:
            control.should_save = False  # the last step of the epoch has just been saved

    # What it decides

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """Ends the training after this step, with a checkpoint; at the last step it ends by itself."""
        self.record.update(state="stopping")
        control.should_evaluate = False
        if state.global_step < state.max_steps:
            self.was_stopped = True
            control.should_log = control.should_save = control.should_training_stop = True

    def _stop_without_a_step(self, state: TrainerState) -> None:
        """Raises Stopped if that is wished while nothing has been done that a checkpoint could save."""
        if self.record.is_stop_requested() and state.global_step == self._first_step:
            raise Stopped

    def require_numbers(self, model: torch.nn.Module) -> None:
        """Raises TrainingError if a training that is to stop when it has diverged has ended with useless weights."""
        if self.job.stop_when_diverged and not are_numbers(trainable(model)):
            raise self._diverged("its weights are no longer numbers")

    def _check_health(self, state: TrainerState) -> None:
        """Raises TrainingError if the last steps have taught the model nothing, or ruined it."""
        self.health.receive()
        if self.job.stop_when_diverged and (complaint := self.health.complaint()):
            raise self._diverged(complaint)
        if self.trainer:
            self.trainer.send_beat(self.health)

    def _diverged(self, complaint: str) -> TrainingError:
        return TrainingError(
            f"The training has diverged: {complaint}. {self.saver.last_good()} "
            f"Lower learning_rate ({self.job.learning_rate:g}), or raise warmup_ratio.",
            cause="diverged",
        )

    def _is_sample_step(self, state: TrainerState) -> bool:
        """Where answers are drawn anyway, these are kept instead."""
        every = 0 if self.trainer and self.trainer.draws_answers else self.job.sample_steps
        return (
            bool(every) and state.global_step % every == 0 and state.global_step < state.max_steps
        )

    def _say_step(self, state: TrainerState) -> None:
        now = time.monotonic()
        seconds, self._step_began = now - self._step_began, now
        mean = self.record.status.seconds_per_step
        self.record.update(
            step=state.global_step,
            epoch=float(state.epoch or 0),
            last_step_time=time.time(),
            seconds_per_step=round(
                seconds if mean is None else mean + WEIGHT_OF_LAST_STEP * (seconds - mean), 4
            ),
        )

    def _lap(self, state: TrainerState, num_tokens: int) -> dict[str, float]:
        """Tokens trained on so far, and per second since the last line; TRL counts real tokens, no padding.

        And where the seconds of a step went.
        """
        now = time.monotonic()
        new_tokens, seconds = num_tokens - self._num_tokens, now - self._lap_began
        num_steps = state.global_step - self._logged_step
        self._num_tokens, self._lap_began, self._logged_step = num_tokens, now, state.global_step
        return {
            "num_tokens": self._num_tokens_before + num_tokens,
            "tokens_per_second": new_tokens / max(seconds, 1e-9),
            **self.stopwatch.lap(seconds, num_steps),
        }


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
