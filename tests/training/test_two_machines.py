"""Test torchrun that users start by hand on two machines: a process that hangs ends all."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.training.ranks.rank import read_words
from tests.builders.ports import free_port
from tests.builders.ranks import (
    has_stepped,
    make_ranked_run,
    processes_in,
    start_by_hand,
    wait_until,
)
from tests.builders.training_runs import status_of

pytestmark = [pytest.mark.training, pytest.mark.slow]
SECONDS_TO_NOTICE = 35
"""Twenty without a beat, and some to say so and to end."""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """Return a run that trains on two machines and has taken a step."""
    run = make_ranked_run(tmp_path / "run", num_devices=2, max_steps=10_000, save_steps=10_000)
    port = free_port()
    agents = [start_by_hand(run, index, port) for index in range(2)]
    wait_until(lambda: has_stepped(run))
    yield run
    for process in processes_in(run):
        process.kill()
    for agent in agents:
        agent.wait()


def program_of(run: Path, index: int) -> psutil.Process:
    pid: Any = read_words(run / "ranks" / f"{index}.json")["pid"]
    return psutil.Process(pid)


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_that_hangs_ends_the_programs_of_both(run: Path, index: int) -> None:
    program_of(run, index).suspend()
    begin = time.monotonic()
    wait_until(lambda: not processes_in(run))
    assert time.monotonic() - begin < SECONDS_TO_NOTICE
    name = f"Process {index + 1} of 2, on device 0 of node-{index}"
    said = f"{name}, has not answered for 20 s, so all were ended."
    assert (status_of(run)["state"], status_of(run)["error"]) == ("failed", said)


@pytest.mark.parametrize("index", [0, 1])
def test_a_machine_that_hangs_ends_the_other(run: Path, index: int) -> None:
    program = program_of(run, index)
    everything = [program.parent(), program, *program.children()]
    for process in everything:
        process.suspend()
    begin = time.monotonic()
    wait_until(lambda: set(processes_in(run)) <= set(everything))
    assert time.monotonic() - begin < SECONDS_TO_NOTICE
    name = f"Process {index + 1} of 2, on device 0 of node-{index}"
    assert status_of(run)["error"].startswith(f"{name}, cannot be reached for 20 s")


@pytest.mark.parametrize("index", [0, 1])  # at one of them all torchruns meet
def test_programs_end_with_the_torchrun_of_one_machine(run: Path, index: int) -> None:
    program_of(run, index).parent().kill()
    wait_until(lambda: not processes_in(run))
    said = f"on device 0 of node-{index}: The program that has started it, torchrun, was killed."
    assert said in status_of(run)["error"]
