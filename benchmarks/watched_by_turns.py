"""A training of ours that is watched for a few steps, and for the next few is plain TRL, in turns: what the two take.

    python benchmarks/watched_by_turns.py NUM_PAIRS STEPS

To be run in a run folder. Every step is timed from its beginning to the beginning of the next. In an unwatched turn the
trainer is the class of TRL that ours is made of, and all that hears of a step writes a line when TRL logs, as the bare
script of bare_trl.py does. Leaves turns.json: for each turn `{is_watched, clock, processor, own_clock, own_processor}`,
seconds a step, the last two of them within the code that watches. The first step of a turn does not count: it begins
where the other kind ends.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

from training.__main__ import main
from training.loop import monitor, stopwatch
from training.loop.trainer import MonitoredTrainer
from transformers import TrainerCallback

ORDER = (True, False, False, True)
"""Of four turns: whatever gets slower or faster meanwhile meets both alike."""


MEASURES = ("clock", "processor", "own_clock", "own_processor")


class Own:
    """Seconds within the code that watches so far, by the clock and of processor time."""

    def __init__(self) -> None:
        self.clock = self.processor = 0.0
        self._depth = 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts unless what has called it is counted already."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            clock, processor = time.perf_counter(), time.thread_time()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.clock += time.perf_counter() - clock
                    self.processor += time.thread_time() - processor

        return timed


OWN = Own()


class Lines(TrainerCallback):
    """Writes down when TRL logs."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            line = {
                "step": state.global_step,
                "time": time.time(),
                "num_tokens": logs["num_tokens"],
            }
            with Path("unwatched.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"loss": logs["loss"]}) + "\n")


class Turns(TrainerCallback):
    """Takes the watching off a trainer and puts it on again, and times the steps."""

    def __init__(self, watching: monitor.MonitorCallback, warm_up: int, steps: int):
        self.trainer: Any = watching.trainer
        self.watching, self.lines = watching, Lines()
        self.watched_class = type(self.trainer)
        self.plain_class = next(
            each for each in self.watched_class.__mro__ if not issubclass(each, MonitoredTrainer)
        )
        self.warm_up, self.steps = warm_up, steps
        self.turns: list[dict[str, Any]] = []
        self.began = moments()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number, within = divmod(state.global_step - self.warm_up, self.steps + 1)
        if within == 0 and number > 0:
            spent = [
                (end - begin) / self.steps for begin, end in zip(self.began, moments(), strict=True)
            ]
            self.turns.append(
                {"is_watched": ORDER[(number - 1) % 4]} | dict(zip(MEASURES, spent, strict=True))
            )
        if within == 0 and number >= 0:
            self.switch(is_watched=ORDER[number % 4])
        if within == 1:
            self.began = moments()

    def switch(self, is_watched: bool) -> None:
        self.trainer.__class__ = self.watched_class if is_watched else self.plain_class
        heard, other = (self.watching, self.lines) if is_watched else (self.lines, self.watching)
        handler = self.trainer.callback_handler
        handler.callbacks = [heard if each is other else each for each in handler.callbacks]

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.switch(is_watched=True)
        Path("turns.json").write_text(json.dumps(self.turns), encoding="utf-8")


def moments() -> tuple[float, ...]:
    """In the order of MEASURES."""
    return time.perf_counter(), time.process_time(), OWN.clock, OWN.processor


class WatchByTurns(monitor.MonitorCallback):
    """Hands the trainer over to Turns when the training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        num_pairs, steps = map(int, sys.argv[1:])
        warm_up = state.max_steps - 1 - 2 * num_pairs * (steps + 1)
        assert self.trainer is not None
        self.trainer.add_callback(Turns(self, warm_up, steps))


if __name__ == "__main__":
    for name in (
        "begin",
        "end",
        *(name for name in vars(monitor.MonitorCallback) if name.startswith("on_")),
    ):
        setattr(monitor.MonitorCallback, name, OWN.counted(getattr(monitor.MonitorCallback, name)))
    stopwatch.Stopwatch.begin = OWN.counted(stopwatch.Stopwatch.begin)  # type: ignore[method-assign]
    monitor.MonitorCallback = WatchByTurns  # type: ignore[misc]
    sys.exit(main(["job.json"]))
