"""Runs of the demo on a real cluster, and waiting for what becomes of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from core import runs
from core.resolve import resolve
from core.runs import Home, Run, launch, queue
from core.runs.engines import Placement
from core.runs.sentences import state_sentence
from tests.builders.fake_runs import advanced

SECONDS_TO_TRAIN = 240


def new_demo(home: Home, num_steps: int, **fields: object) -> Run:
    """Create a run of the demo that evaluates nothing."""
    wanted = {"num_samples": 1, "max_steps": num_steps, "eval_fraction": 0.0, **fields}
    resolved = resolve(wanted)
    return runs.create(home, resolved, resolved.estimate().to_json())


def until(home: Home, run: Run, condition: Callable[[Run], bool]) -> Run:
    """Advance the queue until a run meets a condition. Fail with its log if it does not."""
    deadline = time.monotonic() + SECONDS_TO_TRAIN
    while time.monotonic() < deadline:
        run = advanced(home, run, condition)
        if condition(run):
            return run
    raise AssertionError(f"{state_sentence(run)}\n{run.submission}\n{run.log_tail()}")


def has_ended(run: Run) -> bool:
    """Return True once a run is over."""
    return not run.is_active


def reach(step: int) -> Callable[[Run], bool]:
    """Return a condition: a run has taken so many steps, or is over."""
    return lambda run: run.step >= step or not run.is_active


def programs_of(run: Run) -> dict[int, psutil.Process]:
    """Return the programs of a run by their rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            is_here = process.cwd() == str(run.folder) and "training" in process.cmdline()
            if is_here and "RANK" in variables:  # a guard is another module
                found[int(variables["RANK"])] = process
        except psutil.Error:  # it has ended in the meantime
            continue
    return found


@dataclass(frozen=True)
class Story:
    """A run of the demo on a cluster as it trained, once it was stopped, and once it had ended."""

    running: Run
    stopped: Run
    finished: Run

    @property
    def states(self) -> tuple[str, str]:
        return self.stopped.state, self.finished.state

    @property
    def went_on_from_its_checkpoint(self) -> bool:
        return self.finished.status.resumed_at == (self.stopped.step,)

    @property
    def took_every_step(self) -> bool:
        return self.finished.step == self.finished.job.max_steps > self.stopped.step >= 1


def stop_and_resume(home: Home, placement: Placement, num_steps: int) -> Story:
    """Train the demo on a cluster for some steps, stop it, resume it, and wait for its end."""
    run = queue.submit(home, new_demo(home, num_steps), placement)
    running = until(home, run, reach(3))
    launch.request_stop(runs.read(home, run.id))
    stopped = until(home, run, has_ended)
    queue.submit(home, stopped)
    return Story(running, stopped, until(home, run, has_ended))
