"""Train the demo with Ray Train on two workers of a real Ray: stop, resume, kill, finish."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core import runs
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
from tests.builders.ray import Ray, has_train, running_ray, why_not_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Ray: {why_not_here()}"),
    pytest.mark.skipif(not has_train(), reason="no ray[train] and torch beside the program ray"),
]
NUM_STEPS = 12
SECONDS_TO_END = 60
SECONDS_TO_NOTICE = 35
STEPS_TO_MEASURE = 15


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    """Return a Ray in a folder whose path is short enough for its sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        running_ray(Path(folder), num_workers=2) as ray,
    ):
        yield ray


@pytest.fixture
def place(cluster: Ray, monkeypatch: pytest.MonkeyPatch) -> Placement:
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    return Placement("ray", nodes=2, address=cluster.address)


def test_two_nodes_train_stop_and_resume(place: Placement, home: Home) -> None:
    story = stop_and_resume(home, place, NUM_STEPS)
    assert story.states == ("stopped", "finished")
    assert story.went_on_from_its_checkpoint
    assert story.took_every_step


def test_program_that_dies_ends_the_others(place: Placement, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 1000), place)
    until(home, run, reach(2))
    programs = programs_of(run)
    programs[1].kill()
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert "Process 2 of 2, on device " in failed.error
    assert "was killed or has crashed" in failed.error
    assert not psutil.wait_procs(programs.values(), SECONDS_TO_END)[1]


def test_program_that_hangs_ends_all(place: Placement, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 1000), place)
    until(home, run, reach(2))
    programs = programs_of(run)
    programs[1].suspend()
    assert not psutil.wait_procs(programs.values(), SECONDS_TO_NOTICE)[1]
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert failed.error.startswith("Process 2 of 2, on device ")
    assert "has not answered for 20 s" in failed.error


def test_program_that_gets_no_further_ends_all(place: Placement, home: Home) -> None:
    run = new_demo(home, 1000)
    shorten_limits(run.folder)
    let_fail(run.folder, Fault("forward", STEPS_TO_MEASURE))
    queue.submit(home, run, place)
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert "has come no further for" in failed.error
    assert not psutil.wait_procs(programs_of(run).values(), SECONDS_TO_END)[1]


def test_programs_end_with_the_worker_that_started_them(place: Placement, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 1000), place)
    until(home, run, reach(2))
    programs = programs_of(run)
    programs[0].parent().kill()
    assert until(home, run, has_ended).state in ("failed", "interrupted")
    assert not psutil.wait_procs(programs.values(), SECONDS_TO_END)[1]


def test_run_that_waits_for_workers_can_be_stopped(place: Placement, home: Home) -> None:
    elsewhere = Placement("ray", nodes=4, address=place.address)
    run = queue.submit(home, new_demo(home, NUM_STEPS), elsewhere)
    until(home, run, lambda run: "Requesting resources" in run.log_tail())
    launch.request_stop(runs.read(home, run.id))
    assert until(home, run, has_ended).state == "stopped"
