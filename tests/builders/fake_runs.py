"""Runs of the fake program, smaller ones without any program, and functions that wait for them."""

import time
from collections.abc import Callable
from pathlib import Path

import orjson

from core import runs
from core.job import JobSpec
from core.runs import Home, Run, launch, queue
from core.training.contract.files import write_json
from tests.builders.fake_program.faults import (
    CRASH_AT_STEP_3 as CRASH_AT_STEP_3,
)
from tests.builders.fake_program.faults import (
    DIE_SILENTLY as DIE_SILENTLY,
)
from tests.builders.fake_program.faults import (
    DISK_FULL as DISK_FULL,
)
from tests.builders.fake_program.faults import (
    DIVERGED as DIVERGED,
)
from tests.builders.fake_program.faults import (
    EVALUATED as EVALUATED,
)
from tests.builders.fake_program.faults import (
    GRANDCHILDREN as GRANDCHILDREN,
)
from tests.builders.fake_program.faults import (
    HANG as HANG,
)
from tests.builders.fake_program.faults import (
    KILLED as KILLED,
)
from tests.builders.fake_program.faults import (
    LOST_CARD as LOST_CARD,
)
from tests.builders.fake_program.faults import (
    NEVER_END as NEVER_END,
)
from tests.builders.fake_program.faults import (
    NOT_A_NUMBER as NOT_A_NUMBER,
)
from tests.builders.fake_program.faults import (
    SLOW_TO_EXIT as SLOW_TO_EXIT,
)
from tests.builders.fake_program.faults import (
    SLOW_TO_SAVE as SLOW_TO_SAVE,
)
from tests.builders.fake_program.faults import (
    TORN as TORN,
)

NewRun = Callable[..., Run]
APP = """
import sys
import app
from core.runs import creation
from tests.builders.paths import FAKE_PROGRAM

creation.PROGRAM = FAKE_PROGRAM
sys.exit(app.main(sys.argv[1:]))
"""
"""Tailor's command line, whose runs execute the fake program: `python -c APP train ...`."""
FINISHED = {"state": "finished", "step": 20, "max_steps": 20, "started": 1000.0, "updated": 4600.0}


def bare_run(home: Home, name: str, **fields: object) -> Path:
    """Create the folder of a finished run with as few files as possible."""
    folder = home.runs / name
    folder.mkdir()
    (folder / "job.json").write_text(JobSpec.parse(fields).to_json())
    write_json(folder / "status.json", FINISHED)
    return folder


def write_metrics(folder: Path, steps: range, **more: object) -> None:
    """Append rows to a run's metrics.jsonl; the loss is the step modulo 7."""
    with (folder / "metrics.jsonl").open("ab") as file:
        for step in steps:
            file.write(orjson.dumps({"step": step, "loss": step % 7, **more}) + b"\n")


def start(home: Home, run: Run) -> Run:
    """Submit a run and wait until an earlier one has released its device."""
    queue.submit(home, run)
    return advanced(home, run, lambda run: run.state != "queued")


def started(home: Home, run: Run, step: int = 1) -> Run:
    """Start a run and wait until it has reached a step."""
    start(home, run)
    return stepping(home, run, step)


def stepping(home: Home, run: Run, step: int = 1) -> Run:
    """Wait until a run has reached a step, or has ended."""
    return eventually(
        lambda: runs.read(home, run.id), lambda run: run.step >= step or not run.is_active
    )


def ended(home: Home, run: Run, seconds: float = 20) -> Run:
    """Wait until the program of a run has ended."""
    return launch.wait(home, run.id, seconds)


def wait_for_exit(home: Home, run: Run) -> Run:
    """Wait until the launcher has recorded the end of a run."""
    ended(home, run)
    return eventually(
        lambda: runs.read(home, run.id), lambda run: (run.folder / "exit.json").exists()
    )


def advanced(home: Home, run: Run, condition: Callable[[Run], bool]) -> Run:
    """Advance the queue until a run meets a condition."""

    def advance() -> Run:
        queue.advance(home)
        return runs.read(home, run.id)

    return eventually(advance, condition)


def eventually(
    read: Callable[[], Run], condition: Callable[[Run], bool], seconds: float = 20
) -> Run:
    """Read a run until it meets a condition, or the time is over."""
    deadline = time.monotonic() + seconds
    run = read()
    while not condition(run) and time.monotonic() < deadline:
        time.sleep(0.02)
        run = read()
    return run
