"""Test trainings in which a rank beats but gets no further, and good ones that pause for long."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders.faulty_ranks import LEAST, UNMEASURED, Fault, let_fail, repair, shorten_limits
from tests.builders.ports import free_port
from tests.builders.ranks import (
    finish,
    make_ranked_run,
    processes_in,
    start,
    start_by_hand,
    wait_until,
)
from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    change_job,
    losses_of,
    status_of,
)

pytestmark = [pytest.mark.training, pytest.mark.slow]
LIKE = 1e-4
SECONDS_TO_END = 30
"""Time from the limit to the end of all processes."""
STEPS = 24
STEPS_TO_MEASURE = 15
PAUSE = 2.5 * LEAST
EVALUATES = {"eval_steps": 4, "eval_dataset": "data/eval.jsonl"}
SECOND = "Process 2 of 2, on device 1, has come no further for"


def ranked_run(folder: Path, parallelism: str = "ddp", **fields: object) -> Path:
    """Make a run of two ranks whose limits are short."""
    sizes: dict[str, Any] = {"max_steps": STEPS, "save_steps": 10}
    run = make_ranked_run(folder, num_devices=2, parallelism=parallelism, **sizes, **fields)
    shorten_limits(run)
    return run


def said_of(run: Path) -> str:
    """Return why a run has failed."""
    return str(status_of(run)["error"])


def seconds_after_last_step(run: Path) -> float:
    """Return how long after its last step a run has failed."""
    status = status_of(run)
    return float(status["updated"] - status["last_step_time"])


@pytest.mark.parametrize(
    ("parallelism", "place", "where"),
    [
        ("ddp", "forward", "in the forward pass"),
        ("fsdp", "forward", "in the forward pass"),
        ("fsdp", "data", "while training"),
        ("ddp", "step", "while training"),
    ],
)
def test_a_rank_that_blocks_in_a_step_is_named(
    tmp_path: Path, parallelism: str, place: str, where: str
) -> None:
    run = ranked_run(tmp_path / "run", parallelism)
    let_fail(run, Fault(place, STEPS_TO_MEASURE))
    assert finish(run) == FAILED
    assert said_of(run).startswith(SECOND)
    assert f"{where} (line " in said_of(run)
    assert status_of(run)["cause"] == "stuck"
    assert seconds_after_last_step(run) < LEAST + SECONDS_TO_END
    assert 'training/faults.py", line ' in (run / "log.txt").read_text()  # all its functions
    assert processes_in(run) == []


@pytest.mark.parametrize("place", ["eval", "save"])
def test_a_rank_that_blocks_outside_a_step_is_named(tmp_path: Path, place: str) -> None:
    run = ranked_run(tmp_path / "run", **EVALUATES)
    let_fail(run, Fault(place, 5))
    assert finish(run) == FAILED
    assert said_of(run).startswith(SECOND)
    assert seconds_after_last_step(run) < UNMEASURED + SECONDS_TO_END
    assert processes_in(run) == []


def test_ranks_that_wait_for_each_other_end(tmp_path: Path) -> None:
    run = ranked_run(tmp_path / "run")
    let_fail(run, Fault("step", STEPS_TO_MEASURE, "barrier"))
    assert finish(run) == FAILED
    assert said_of(run).startswith("The processes wait for each other, for ")
    assert processes_in(run) == []


def test_a_run_that_was_stuck_goes_on_exactly(tmp_path: Path) -> None:
    undisturbed = ranked_run(tmp_path / "undisturbed")
    assert finish(undisturbed) == FINISHED
    run = ranked_run(tmp_path / "run")
    let_fail(run, Fault("forward", STEPS_TO_MEASURE, rank=0))
    assert finish(run) == FAILED
    assert said_of(run).startswith("Process 1 of 2, on device 0, has come no further")
    repair(run)
    assert finish(run) == FINISHED
    assert status_of(run)["resumed_at"] == [10]
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), abs=LIKE)


def test_long_pauses_of_a_good_run_end_nothing(tmp_path: Path) -> None:
    run = ranked_run(tmp_path / "run", **EVALUATES)
    pauses = [("step", 1), ("eval", 5), ("save", 5), ("eval", STEPS_TO_MEASURE)]
    let_fail(run, *[Fault(place, step, PAUSE) for place, step in pauses])
    assert finish(run) == FINISHED


def test_loading_and_compiling_are_work(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"max_steps": 3, "torch_compile": True}
    run = make_ranked_run(tmp_path / "run", num_devices=2, **sizes)
    shorten_limits(run, unmeasured=LEAST)  # a minute of compiling, in processes of its own
    assert finish(run) == FINISHED
    assert "No progress" not in (run / "log.txt").read_text()


def test_a_rank_of_two_machines_that_blocks_is_named(tmp_path: Path) -> None:
    run = ranked_run(tmp_path / "run")
    let_fail(run, Fault("forward", STEPS_TO_MEASURE))
    port = free_port()
    agents = [start_by_hand(run, index, port) for index in range(2)]
    wait_until(lambda: not processes_in(run))
    for agent in agents:
        agent.wait()
    name = "Process 2 of 2, on device 0 of node-1, has come no further for"
    assert said_of(run).startswith(name)
    assert seconds_after_last_step(run) < LEAST + SECONDS_TO_END


def test_a_job_that_is_suspended_as_a_whole_is_not_stuck(tmp_path: Path) -> None:
    run = ranked_run(tmp_path / "run")
    change_job(run, max_steps=400, save_steps=400)
    program = start(run)
    wait_until(lambda: (run / "metrics.jsonl").exists() and status_of(run)["step"] > STEPS)
    every = processes_in(run)
    for process in every:
        process.suspend()
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(3 * LEAST)
    for process in every:
        process.resume()
    assert program.wait(120) == FINISHED
