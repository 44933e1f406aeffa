"""Train the demo on a real Slurm of one node: submit, follow, stop, requeue, resume, finish."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import runs
from core.runs import Home, launch, queue
from core.runs.engines import Placement
from core.runs.sentences import state_sentence
from tests.builders.cluster_runs import (
    SECONDS_TO_TRAIN,
    has_ended,
    new_demo,
    reach,
    stop_and_resume,
    until,
)
from tests.builders.paths import ROOT
from tests.builders.slurm import Slurm, running_slurm, why_not_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Slurm: {why_not_here()}"),
]
NUM_STEPS = 30
PLACE = Placement("slurm", partition="debug", time="20:00")


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


def test_run_is_followed_stopped_resumed_and_finished(slurm: Slurm, home: Home) -> None:
    story = stop_and_resume(home, PLACE, NUM_STEPS)
    assert story.states == ("stopped", "finished")
    assert story.went_on_from_its_checkpoint
    assert story.took_every_step
    jobs = [each.submission.job_id for each in (story.running, story.finished) if each.submission]
    assert len(set(jobs)) == 2


def test_requeued_run_goes_on_from_its_checkpoint(slurm: Slurm, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 200), PLACE)
    running = until(home, run, reach(2))
    assert running.submission
    slurm.ask("scontrol", "requeue", running.submission.job_id)
    waiting = until(home, run, lambda run: run.state == "queued" or not run.is_active)
    assert waiting.state == "queued"
    again = until(home, run, lambda run: bool(run.status.resumed_at) or not run.is_active)
    assert again.status.resumed_at
    launch.request_stop(again)
    assert until(home, run, has_ended).state == "stopped"


def test_more_urgent_job_takes_the_place_and_gives_it_back(slurm: Slurm, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 200), PLACE)
    until(home, run, reach(2))
    urgent = ("--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 8")
    slurm.ask("sbatch", *urgent)
    assert until(home, run, lambda run: run.state == "queued").state == "queued"
    again = until(home, run, lambda run: bool(run.status.resumed_at) or not run.is_active)
    assert again.status.resumed_at
    launch.request_stop(again)
    assert until(home, run, has_ended).state == "stopped"


def test_time_limit_leaves_a_checkpoint(slurm: Slurm, home: Home) -> None:
    run = queue.submit(home, new_demo(home, 100_000), Placement("slurm", time="3"))
    ended = until(home, run, has_ended)
    assert (ended.state, ended.has_checkpoint) == ("stopped", True)


def test_waiting_run_tells_the_reason_and_can_be_stopped(slurm: Slurm, home: Home) -> None:
    run = queue.submit(
        home, new_demo(home, NUM_STEPS), Placement("slurm", partition="urgent", time="10:00:00")
    )
    waiting = until(home, run, lambda run: "PartitionTimeLimit" in state_sentence(run))
    assert "the partition does not allow so much time" in state_sentence(waiting)
    launch.request_stop(waiting)
    assert until(home, run, has_ended).state == "stopped"


def test_node_that_does_not_see_the_folder_is_named(slurm: Slurm, home: Home) -> None:
    run = new_demo(home, NUM_STEPS)
    queue.submit(home, run, PLACE)
    until(home, run, reach(1))
    launch.request_stop(runs.read(home, run.id))
    stopped = until(home, run, has_ended)
    (run.folder / "probe.txt").write_text("another folder\n")
    queue.submit(home, stopped)
    failed = until(home, run, has_ended)
    assert failed.state == "failed"
    assert "put --home on storage that all nodes see" in failed.error


def test_terminal_follows_a_run_to_its_end(slurm: Slurm, home: Home) -> None:
    words = ["train", "--demo", "--max-steps", "5", "--on", "slurm", "--home", str(home.path)]
    done = subprocess.run(
        [sys.executable, "app.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_TRAIN,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("Slurm job", "RUNNING", "step 5/5", "Finished: 5 steps"):
        assert part in done.stdout


def test_task_of_an_array_is_stopped_and_resumed_alone(
    slurm: Slurm, home: Home, tmp_path: Path
) -> None:
    sent = [new_demo(home, num_steps) for num_steps in (1000, NUM_STEPS, 3)]
    queue.submit_together(home, sent, PLACE, tmp_path / "sweep.sh")
    trains, finishes, waits = sent
    until(home, trains, reach(2))
    for run in (waits, trains):
        launch.request_stop(runs.read(home, run.id))
        assert until(home, run, has_ended).state == "stopped"
    assert until(home, finishes, has_ended).state == "finished"
    queue.submit(home, runs.read(home, waits.id))
    assert until(home, waits, has_ended).state == "finished"
