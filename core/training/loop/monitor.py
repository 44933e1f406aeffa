"""Monitor of a training: reports steps, metrics and memory peaks to the run folder, and ends the
training on request or when it has diverged.

Two sides use it. MonitoredTrainer calls `begin`, `end` and `outside_training`, because only a
trainer knows where in a step it is. transformers calls the `on_...` methods, because a callback may
end the training.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..contract.failures import Stopped, TrainingError
from ..contract.job import BATCH_FIELDS, Job
from ..contract.stages import STAGES
from ..contract.status import Phase, Progress
from ..ranks import agreement
from ..record import RunFiles, say
from .best import BestEvaluation
from .divergence import DivergenceMonitor, are_finite
from .meter import MemoryMeter
from .over_ranks import over_ranks
from .probe import has_limited_memory, probe
from .saver import Saver, trainable
from .stopwatch import stopwatch_of_device

# fmt: off
NOT_METRICS = frozenset({
    "epoch", "num_tokens", "eval_num_tokens", "eval_runtime", "eval_samples_per_second",
    "eval_steps_per_second",
})
# fmt: on
"""What TRL logs beside metrics. Epoch and tokens are logged under names of our own."""
WEIGHT_OF_LAST_STEP = 0.2
"""Weight of the last step in the moving average of seconds per step."""


class EndedEarly(Exception):
    """Raised before the first step of an attempt, if the evaluations say that it would be vain."""


class MonitorCallback(TrainerCallback):
    """Callback that reports a training and ends it early."""

    def __init__(
        self,
        run_files: RunFiles,
        meter: MemoryMeter,
        saver: Saver,
        job: Job,
        num_tokens_before: int = 0,
    ):
        """`num_tokens_before`: tokens that earlier attempts of the run have trained on."""
        self.run_files = run_files
        self.meter = meter
        self.saver = saver
        self.job = job
        self.stage = STAGES[job.stage]
        self.trainer: Trainer | None = None
        self.answer_samples: Callable[[int], None] | None = None
        """Answer the sample questions at a step; None before the first step."""
        self.check: Callable[[int], Mapping[str, float]] | None = None
        """Answer the suites at a step and return what passed; None before the first step."""
        self.divergence = DivergenceMonitor()
        self.best = BestEvaluation.of(job)
        self.stopwatch = stopwatch_of_device()
        self._num_tokens_before = num_tokens_before
        self._num_tokens = 0
        self._first_step: int | None = None
        """Step at which this attempt began."""
        self._logged_step = 0
        self._lap_began = self._step_began = time.monotonic()
        self._saved_step = -1
        self._num_predicted = 0

    # Called by MonitoredTrainer

    def begin(self, activity: str) -> None:
        """Begin generation, forward, backward or optimizer step; the activity before ends."""
        self.run_files.activity = activity
        self.meter.enter(activity)
        self.stopwatch.begin(activity)

    def end(self) -> None:
        """End the activity."""
        self.meter.leave()
        self.stopwatch.begin(None)
        self.run_files.activity = None

    @contextmanager
    def outside_training(self, phase: Phase, *, is_measured: bool = True) -> Iterator[None]:
        """Run a block outside the training loop (evaluation, saving) and exclude its time from the
        throughput."""
        began = time.monotonic()
        self._num_predicted = 0
        self.run_files.update(phase=phase)
        with self.meter.measured(phase) if is_measured else self.meter.unmeasured():
            yield
        seconds = time.monotonic() - began
        self._lap_began += seconds
        self._step_began += seconds
        self.run_files.update(phase="train", **self.peaks())

    def peaks(self) -> dict[str, Any]:
        """Return the measured peaks, named as in status.json."""
        return {"phase_peak_bytes": dict(self.meter.peaks), **self.meter.gauge.highest()}

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """End the training after this step, with a checkpoint. The last step ends it anyway."""
        self.run_files.update(state="stopping")
        control.should_evaluate = False
        if state.global_step < state.max_steps:
            self.run_files.stop.is_obeyed = True
            control.should_log = True
            control.should_save = True
            control.should_training_stop = True

    def require_finite_weights(self, model: torch.nn.Module) -> None:
        """Raise TrainingError if the training has ended with useless weights and stop_when_diverged
        is set."""
        is_useless = agreement.any_rank(not are_finite(trainable(model)))
        if self.job.stop_when_diverged and is_useless:
            raise self._divergence_error("its weights are no longer finite")

    # Called by transformers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Also called when the loop restarts after an out-of-memory error."""
        if self._first_step is None:
            self._first_step = state.global_step
        self._logged_step = state.global_step
        # With max_steps, TrainingArguments holds a default number of epochs, and the state the true
        # one.
        num_epochs = state.num_train_epochs if args.max_steps > 0 else args.num_train_epochs
        self.run_files.update(
            state="running",
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=float(state.epoch or 0),
            num_train_epochs=float(num_epochs),
            **{name: getattr(args, name) for name in BATCH_FIELDS},
        )
        self._stop_before_first_step(state)
        has_steps_left = state.global_step < state.max_steps and not self.best.is_in_vain
        if self.trainer is not None and has_steps_left:
            self._require_sharded()
            self.saver.require_room(self.trainer)
            if has_limited_memory() and not self.stage.generates:
                probe(self.trainer)
        self._make_up_for_evaluation(state, control)
        if self.check and state.global_step == 0:
            with self.outside_training("eval"):
                self.check(0)
        # Do not count the time of the probe.
        self.stopwatch = stopwatch_of_device()
        self._lap_began = self._step_began = time.monotonic()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.begin("optimizer_step")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.end()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if agreement.count() == 1:  # several ranks can only end together, after a step
            self._stop_before_first_step(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._report_step(state)
        self._check_divergence(state)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last step always has a line in metrics.jsonl
        if agreement.any_rank(self.run_files.stop.is_set):
            self.stop(state, control)
            return
        # Online stages log generated answers instead of samples.
        has_samples = self.answer_samples and not self.stage.generates
        if self.answer_samples and has_samples and self._is_due(self.job.sample_steps, state):
            with self.outside_training("eval", is_measured=False):
                self.answer_samples(state.global_step)
        is_judged = self.best.is_of_suite and state.global_step >= state.max_steps  # the last too
        if is_judged or self._is_due(self.job.check_steps, state):
            self._check(state, control)

    def on_prediction_step(self, *_: Any, eval_dataloader: Any = None, **__: Any) -> None:
        if agreement.any_rank(self.run_files.stop.is_set):
            raise Stopped  # MonitoredTrainer.evaluate catches it
        self._num_predicted += 1
        num_batches = _num_batches(eval_dataloader)
        progress = Progress("evaluating", self._num_predicted, num_batches, "batches")
        self.run_files.update(progress=progress)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        epoch = float(state.epoch or 0)
        values = {
            name: float(value)
            for name, value in logs.items()
            if name not in NOT_METRICS and _is_number(value)
        }
        if "eval_loss" in values:
            self.run_files.append_metrics(state.global_step, epoch, values)
            if not self.best.is_of_suite:
                self._judge(state, control, values.get(self.best.metric))
        elif "loss" in values:
            num_tokens = int(logs.get("num_tokens", self._num_tokens))
            values |= over_ranks({**self._lap(state, num_tokens), **self.meter.gauge.readings()})
            self.run_files.append_metrics(state.global_step, epoch, values)
            self.run_files.update(**self.peaks())
            if args.disable_tqdm:  # no terminal: print a line to the log
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

    # Decisions

    def resume_best(self) -> None:
        """Add the evaluations of earlier attempts. metrics.jsonl ends at the checkpoint by now."""
        self.best.add_rows(self.run_files.metrics())
        self._report_best()

    def _make_up_for_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        """Evaluate or check a checkpoint that is resumed if a stop has cut that short.

        Only for jobs that judge evaluations: which step is best must not depend on the stop.
        """
        judges = self.job.keep_best != "off" or self.best.patience > 0
        step = state.global_step
        if not judges or self.trainer is None or step == 0 or step >= state.max_steps:
            return
        is_due = self.trainer.args.eval_strategy == "steps" and step % state.eval_steps == 0
        if self.best.is_of_suite:
            is_due = self._is_due(self.job.check_steps, state)
        judged = filter(self.best.is_evaluation, self.run_files.metrics())
        if not is_due or step in [row["step"] for row in judged]:
            return
        if self.best.is_of_suite:
            self._check(state, control)
        else:
            self.trainer.evaluate()
        self._stop_before_first_step(state)
        control.should_save = False  # this is the step of the checkpoint
        control.should_log = False
        if self.best.is_in_vain:
            raise EndedEarly

    def _check(self, state: TrainerState, control: TrainerControl) -> None:
        """Let the model answer the suites, and judge it if one of them says what is best."""
        if self.check is None:
            return
        with self.outside_training("eval"):
            shares = self.check(state.global_step)
        if self.run_files.stop.is_set:
            self.stop(state, control)  # now, so that a check that was cut short is made up for
        elif self.best.metric in shares:
            self._judge(state, control, shares[self.best.metric])

    def _judge(self, state: TrainerState, control: TrainerControl, value: float | None) -> None:
        """Save the best model so far, if it is kept. End the training if it has become vain."""
        is_number = value is not None and math.isfinite(value)
        is_best = self.best.add(state.global_step, value if is_number else None)
        self._report_best()
        if is_best and self.job.keep_best != "off":
            control.should_save = True
        if self.best.is_in_vain and state.global_step < state.max_steps:
            control.should_save = True
            control.should_log = True
            control.should_training_stop = True
            self.report_early_end(state.global_step)

    def report_early_end(self, step: int) -> None:
        """Say why the run ends before its last step."""
        sentence = self.best.sentence(step)
        say(sentence)
        self.run_files.update(ended_early=sentence)

    def _report_best(self) -> None:
        if self.job.keep_best != "off":
            self.saver.best_step = self.best.step
        if self.best.step is not None:
            self.run_files.update(
                best_step=self.best.step, best_value=self.best.value, best_metric=self.best.metric
            )

    def _stop_before_first_step(self, state: TrainerState) -> None:
        """Raise Stopped on request while this attempt has done nothing that a checkpoint could
        save."""
        is_asked = agreement.any_rank(self.run_files.stop.is_set)
        if is_asked and state.global_step == self._first_step:
            raise Stopped

    def _require_sharded(self) -> None:
        """Raise TrainingError if the model should be divided among the devices and is not."""
        if not self.job.is_sharded or self.trainer is None:
            return
        parameters = list(self.trainer.model.parameters())  # type: ignore[union-attr]
        whole = [each for each in parameters if not isinstance(each, DTensor)]
        if whole:
            raise TrainingError(
                f"{len(whole)} of {len(parameters)} tensors of the model were not divided among "
                "the devices: choose parallelism ddp.",
            )

    def _check_divergence(self, state: TrainerState) -> None:
        """Raise TrainingError if the recent steps have taught the model nothing, or ruined it."""
        self.divergence.receive()
        diagnosis = self.divergence.diagnosis()
        if agreement.any_rank(bool(diagnosis)) and not diagnosis:
            diagnosis = "on another device the loss or the gradient is useless"
        if self.job.stop_when_diverged and diagnosis:
            raise self._divergence_error(diagnosis)
        self.divergence.end_step(state.global_step)

    def _divergence_error(self, diagnosis: str) -> TrainingError:
        return TrainingError(
            f"The training has diverged: {diagnosis}. {self.saver.last_checkpoint_sentence()} "
            f"Lower learning_rate ({self.job.learning_rate:g}), or raise warmup_ratio.",
            cause="diverged",
        )

    def _is_due(self, every: int, state: TrainerState) -> bool:
        """Return True if something is due after this step that happens every so many steps, and at
        the end anyway."""
        if every == 0 or state.global_step >= state.max_steps:
            return False
        return state.global_step % every == 0

    # Reports

    def _report_step(self, state: TrainerState) -> None:
        now = time.monotonic()
        seconds = now - self._step_began
        self._step_began = now
        mean = self.run_files.status.seconds_per_step
        if mean is None:
            mean = seconds
        self.run_files.update(
            step=state.global_step,
            epoch=float(state.epoch or 0),
            last_step_time=time.time(),
            seconds_per_step=round(mean + WEIGHT_OF_LAST_STEP * (seconds - mean), 4),
        )

    def _lap(self, state: TrainerState, num_tokens: int) -> dict[str, float]:
        """Return the tokens trained on so far, tokens per second since the last line, and seconds
        per activity.

        `num_tokens` are those of this attempt. TRL counts real tokens, without padding.
        """
        now = time.monotonic()
        seconds = now - self._lap_began
        new_tokens = num_tokens - self._num_tokens
        num_steps = state.global_step - self._logged_step
        self._lap_began = now
        self._num_tokens = num_tokens
        self._logged_step = state.global_step
        return {
            "num_tokens": self._num_tokens_before + num_tokens,
            "tokens_per_second": new_tokens / max(seconds, 1e-9),
            **self.stopwatch.lap(seconds, num_steps),
        }


def _num_batches(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream of unknown length
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
