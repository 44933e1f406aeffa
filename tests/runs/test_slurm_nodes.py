"""Train the demo on a real Slurm of two nodes, and ask a node that does not see the home."""

import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.job import SpecError
from core.runs import Home, launch, queue
from core.runs.engines import Placement
from tests.builders.cluster_runs import (
    has_ended,
    new_demo,
    programs_of,
    reach,
    stop_and_resume,
    until,
)
from tests.builders.faulty_ranks import Fault, let_fail, shorten_limits
from tests.builders.slurm import SECOND, Slurm, running_slurm, why_not_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Slurm: {why_not_here()}"),
]
NUM_STEPS = 12
SECONDS_TO_END = 60
SECONDS_TO_NOTICE = 35
STEPS_TO_MEASURE = 15
NAMED = rf"Process [12] of 2, on device 0 of ({SECOND}|{socket.gethostname()}), "
BOTH = Placement("slurm", nodes=2, partition="both", time="20:00")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    """Return a Slurm in a folder whose path is short enough for its sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        running_slurm(Path(folder), num_nodes=2) as slurm,
    ):
        yield slurm


@pytest.fixture
def slurm(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def test_two_nodes_train_stop_and_resume(slurm: Slurm, home: Home) -> None:
    story = stop_and_resume(home, BOTH, NUM_STEPS)
    assert story.states == ("stopped", "finished")
    assert story.went_on_from_its_checkpoint
    assert story.took_every_step


def test_requeued_nodes_go_on_from_their_checkpoint(slurm: Slurm, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 1000, save_steps=2), BOTH)
    running = until(home, run, reach(4))
    assert running.submission
    slurm.ask("scontrol", "requeue", running.submission.job_id)
    again = until(home, run, lambda run: bool(run.status.resumed_at) or not run.is_active)
    assert again.status.resumed_at
    reached = until(home, run, reach(again.status.resumed_at[0] + 2))
    assert reached.state == "running"
    launch.request_stop(reached)
    assert until(home, run, has_ended).state == "stopped"


def test_program_that_dies_on_a_node_ends_those_of_the_other(slurm: Slurm, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 1000), BOTH)
    until(home, run, reach(2))
    programs = programs_of(run)
    programs[1].kill()
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert re.search(NAMED + "was killed or has crashed", failed.error)
    assert not psutil.wait_procs(programs.values(), SECONDS_TO_END)[1]


@pytest.mark.parametrize("index", [0, 1])
def test_program_that_hangs_on_a_node_ends_those_of_both(
    slurm: Slurm, home: Home, index: int
) -> None:
    run = queue.submit(home, new_demo(home, 1000), BOTH)
    until(home, run, reach(2))
    programs = programs_of(run)
    programs[index].suspend()
    begin = time.monotonic()
    assert not psutil.wait_procs(programs.values(), SECONDS_TO_NOTICE)[1]
    failed = until(home, run, has_ended)
    assert time.monotonic() - begin < SECONDS_TO_NOTICE
    assert failed.state == "failed"
    assert re.search(NAMED + "has not answered for 20 s", failed.error)
    assert failed.error.startswith(f"Process {index + 1} of 2")


def test_program_that_gets_no_further_ends_all(slurm: Slurm, home: Home) -> None:
    run = new_demo(home, 1000)
    shorten_limits(run.folder)
    let_fail(run.folder, Fault("forward", STEPS_TO_MEASURE))
    queue.submit(home, run, BOTH)
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert re.search(NAMED + "has come no further for", failed.error)
    assert not psutil.wait_procs(programs_of(run).values(), SECONDS_TO_END)[1]


def test_node_that_does_not_see_the_home_is_named_before_the_start(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        running_slurm(Path(folder), num_nodes=2, hidden=home.path) as slurm,
    ):
        for name, value in slurm.environment.items():
            monkeypatch.setenv(name, value)
        run = new_demo(home, NUM_STEPS)
        with pytest.raises(SpecError, match=f"does not see {home.path}; put --home on"):
            queue.submit(home, run, Placement("slurm", partition=SECOND))
        assert "tailor-20" not in slurm.ask("squeue", "--states=all", "--format=%j")
        assert queue.submit(home, run, Placement("slurm", partition="debug")).is_active
