"""Train the demo on a real Ray of a head and a worker: submit, follow, stop, resume, finish."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.job import SpecError
from core.runs import Home, Run, launch, queue
from core.runs.engines import Placement
from core.runs.sentences import state_sentence
from tests.builders.cluster_runs import has_ended, new_demo, stop_and_resume, until
from tests.builders.ray import Ray, can_hide_folders, running_ray, why_not_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Ray: {why_not_here()}"),
]
NUM_STEPS = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    """Return a Ray in a folder whose path is short enough for its sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        running_ray(Path(folder)) as ray,
    ):
        yield ray


@pytest.fixture
def place(cluster: Ray, monkeypatch: pytest.MonkeyPatch) -> Placement:
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    return Placement("ray", address=cluster.address)


@pytest.fixture
def demo(home: Home) -> Run:
    return new_demo(home, NUM_STEPS)


def test_run_is_followed_stopped_resumed_and_finished(place: Placement, home: Home) -> None:
    story = stop_and_resume(home, place, NUM_STEPS)
    assert story.states == ("stopped", "finished")
    assert story.went_on_from_its_checkpoint
    assert story.took_every_step


def test_run_that_waits_for_devices_can_be_stopped(place: Placement, home: Home, demo: Run) -> None:
    elsewhere = Placement("ray", address=place.address, gres="gpu:4")
    run = queue.submit(home, demo, elsewhere)
    waiting = until(home, run, lambda run: "PENDING" in state_sentence(run))
    assert "it waits for free CPUs or GPUs" in state_sentence(waiting)
    launch.request_stop(waiting)
    assert until(home, run, has_ended).state == "stopped"


def test_cluster_without_the_token_is_refused(
    place: Placement, home: Home, demo: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(SpecError, match="Ray does not answer: 401"):
        queue.submit(home, demo, place)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    """Return a Ray without workers."""
    if not can_hide_folders():
        pytest.skip("needs the right to mount")
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        running_ray(Path(folder), num_workers=0) as ray,
    ):
        monkeypatch.setenv("RAY_AUTH_TOKEN", ray.token)
        yield ray


def test_run_is_refused_where_a_node_does_not_see_the_home(
    head: Ray, home: Home, demo: Run
) -> None:
    head.add_worker(hidden=home.path)
    with pytest.raises(SpecError, match=r"a node of the cluster does not see .* put --home on"):
        queue.submit(home, demo, Placement("ray", address=head.address))


def test_run_fails_where_the_first_free_node_does_not_see_it(
    head: Ray, home: Home, demo: Run
) -> None:
    run = queue.submit(home, demo, Placement("ray", address=head.address))
    head.add_worker(hidden=home.path)
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert "the node does not see the run folder: put --home on storage" in failed.error
