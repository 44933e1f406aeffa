"""Move a run of two processes between this machine, a real Slurm and a real Ray, and requeue it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import runs
from core.runs import Home, Run, launch, queue
from core.runs.engines import Placement
from tests.builders.cluster_runs import has_ended, new_demo, programs_of, reach, until
from tests.builders.ray import running_ray
from tests.builders.ray import why_not_here as why_no_ray
from tests.builders.slurm import Slurm, running_slurm, why_not_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Slurm: {why_not_here()}"),
]
NUM_STEPS = 30
STEPS_OF_EACH = 3
HERE, SLURM = Placement(), Placement("slurm", partition="debug", time="20:00")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    """Return a Slurm in a folder whose path is short enough for its sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        running_slurm(Path(folder)) as slurm,
    ):
        yield slurm


@pytest.fixture
def slurm(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.ask("scancel", "--user=root", "--full")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Placement]:
    if why_no_ray():
        pytest.skip(why_no_ray())
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        running_ray(Path(folder)) as ray,
    ):
        monkeypatch.setenv("RAY_AUTH_TOKEN", ray.token)
        yield Placement("ray", address=ray.address)


def stopped_after_some_steps(home: Home, run: Run, placement: Placement) -> Run:
    """Train a run at a place for some steps, and stop it with a checkpoint."""
    queue.submit(home, run, placement)
    until(home, run, reach(run.step + STEPS_OF_EACH))
    launch.request_stop(runs.read(home, run.id))
    return until(home, run, has_ended)


def finished_after(home: Home, places: list[Placement]) -> tuple[Run, tuple[int, ...]]:
    """Train two processes at each place in turn. Return the run, and the steps of its stops."""
    run = new_demo(home, NUM_STEPS, num_devices=2)
    stops = []
    for place in places[:-1]:
        run = stopped_after_some_steps(home, run, place)
        assert run.state == "stopped"
        stops.append(run.step)
    queue.submit(home, run, places[-1])
    return until(home, run, has_ended), tuple(stops)


@pytest.mark.parametrize(
    "places", [[SLURM, HERE], [HERE, SLURM]], ids=["Slurm to here", "here to Slurm"]
)
def test_two_processes_go_on_elsewhere(slurm: Slurm, home: Home, places: list[Placement]) -> None:
    run, stops = finished_after(home, places)
    assert (run.state, run.step) == ("finished", NUM_STEPS)
    assert run.status.resumed_at == stops


def test_two_processes_go_on_from_slurm_to_ray_to_here(
    slurm: Slurm, ray: Placement, home: Home
) -> None:
    run, stops = finished_after(home, [SLURM, ray, HERE])
    assert (run.state, run.step) == ("finished", NUM_STEPS)
    assert run.status.resumed_at == stops


def test_requeued_run_of_two_processes_goes_on(slurm: Slurm, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 1000, num_devices=2), SLURM)
    running = until(home, run, reach(STEPS_OF_EACH))
    assert running.submission
    assert len(programs_of(running)) == 2
    slurm.ask("scontrol", "requeue", running.submission.job_id)
    again = until(home, run, lambda run: bool(run.status.resumed_at) or not run.is_active)
    assert again.status.resumed_at
    assert until(home, run, reach(again.status.resumed_at[0] + 1)).state == "running"
    launch.request_stop(runs.read(home, run.id))
    assert until(home, run, has_ended).state == "stopped"
