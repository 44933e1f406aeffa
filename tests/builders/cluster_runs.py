"""Runs of the demo on a real cluster, and waiting for what becomes of them."""

import time
from collections.abc import Callable

import psutil

from core import runs
from core.resolve import resolve
from core.runs import Home, Run
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
