"""Train with and without monitoring by turns, and time the steps of each turn.

    python benchmarks/watched_by_turns.py NUM_PAIRS STEPS

Run it in a run folder. watching_overhead.py makes one and starts it there. It trains job.json with
our training program. In every other turn of a few steps, the program's trainer and its monitor are
replaced by TRL's trainer and a callback that only writes the loss, as bare_trl.py has it.

Writes turns.json: a list of `{is_watched, clock, processor, own_clock, own_processor}`, all but the
first in seconds per step. The last two are the time within the monitoring code. A step lasts from
its beginning to the beginning of the next. The first step of a turn does not count, because it
begins before the switch.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
sys.path.append(str(Path(__file__).resolve().parent.parent))

from training.__main__ import main
from training.loop import monitor, stopwatch
from training.loop.trainer import MonitoredTrainer
from transformers import TrainerCallback

from benchmarks.trl_log import LossWriter

ORDER = (True, False, False, True)
"""Which of four turns are watched. A machine that gets slower with time slows both kinds alike."""
MEASURES = ("clock", "processor", "own_clock", "own_processor")


class MonitoringTime:
    """Seconds spent in the monitoring code so far: wall time and processor time."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.processor = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added here; calls within a timed call add nothing."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            clock, processor = time.perf_counter(), time.thread_time()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.clock += time.perf_counter() - clock
                    self.processor += time.thread_time() - processor

        return call


MONITORING_TIME = MonitoringTime()


class Turns(TrainerCallback):
    """Switches a trainer's monitoring off and on, and times the steps."""

    def __init__(self, monitoring: monitor.MonitorCallback, warm_up: int, steps: int):
        self.trainer: Any = monitoring.trainer
        self.monitoring = monitoring
        self.writer = LossWriter(Path("unwatched.jsonl"))
        self.watched_class = type(self.trainer)
        self.plain_class = next(
            each for each in self.watched_class.__mro__ if not issubclass(each, MonitoredTrainer)
        )
        self.warm_up = warm_up
        self.steps = steps
        self.turns: list[dict[str, Any]] = []
        self.began = moments()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A turn has one step that does not count, and then `steps` steps that do.
        number, step_of_turn = divmod(state.global_step - self.warm_up, self.steps + 1)
        if step_of_turn == 1:
            self.began = moments()
        if step_of_turn != 0:
            return
        if number > 0:
            self._end_turn(number - 1)
        if number >= 0:
            self.switch(is_watched=ORDER[number % len(ORDER)])

    def _end_turn(self, number: int) -> None:
        turn: dict[str, Any] = {"is_watched": ORDER[number % len(ORDER)]}
        for measure, begin, end in zip(MEASURES, self.began, moments(), strict=True):
            turn[measure] = (end - begin) / self.steps
        self.turns.append(turn)

    def switch(self, is_watched: bool) -> None:
        if is_watched:
            self.trainer.__class__ = self.watched_class
            added, removed = self.monitoring, self.writer
        else:
            self.trainer.__class__ = self.plain_class
            added, removed = self.writer, self.monitoring
        handler = self.trainer.callback_handler
        handler.callbacks = [
            added if callback is removed else callback for callback in handler.callbacks
        ]

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.switch(is_watched=True)
        Path("turns.json").write_text(json.dumps(self.turns), encoding="utf-8")


def moments() -> tuple[float, ...]:
    """Return the clocks now, in the order of MEASURES."""
    return (
        time.perf_counter(),
        time.process_time(),
        MONITORING_TIME.clock,
        MONITORING_TIME.processor,
    )


class WatchByTurns(monitor.MonitorCallback):
    """Monitor that adds Turns to the trainer when the training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        num_pairs, steps = map(int, sys.argv[1:])
        warm_up = state.max_steps - 1 - 2 * num_pairs * (steps + 1)
        assert self.trainer is not None
        self.trainer.add_callback(Turns(self, warm_up, steps))


def time_the_monitoring() -> None:
    """Replace the functions that monitor a training by timed ones."""
    callbacks = [name for name in vars(monitor.MonitorCallback) if name.startswith("on_")]
    for name in ("begin", "end", *callbacks):
        timed = MONITORING_TIME.timed(getattr(monitor.MonitorCallback, name))
        setattr(monitor.MonitorCallback, name, timed)
    timed_begin = MONITORING_TIME.timed(stopwatch.Stopwatch.begin)
    stopwatch.Stopwatch.begin = timed_begin  # type: ignore[method-assign]


if __name__ == "__main__":
    time_the_monitoring()
    monitor.MonitorCallback = WatchByTurns  # type: ignore[misc]
    sys.exit(main(["job.json"]))
