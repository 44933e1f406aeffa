"""Test what others may do while a run is sent to a cluster that takes long, and after a crash."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from core import runs
from core.job import Problem, SpecError
from core.runs import Home, Run, clusters, edits, launch, queue, results
from core.runs.engines import ENGINES, Placement, read_submission
from core.runs.home import locked, read_schedule
from core.runs.sentences import state_sentence
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun, ended
from tests.builders.fake_slurm import FakeSlurm, hanging
from tests.builders.paths import ROOT
from tests.builders.ranks import wait_until

SLURM = Placement("slurm", time="1:00:00")
SENDER = """
import sys
from pathlib import Path
from core import runs
from core.runs import Home, queue
from core.runs.engines import Placement

home = Home(Path(sys.argv[1]))
queue.submit(home, runs.read(home, sys.argv[2]), Placement("slurm", time="1:00:00"))
"""


@pytest.fixture
def sending(slurm: FakeSlurm, home: Home, new_run: NewRun) -> Iterator[Run]:
    """Return a run that another thread is sending."""
    run = new_run()
    with hanging(slurm, "sbatch", lambda: queue.submit(home, run, SLURM)):
        yield runs.read(home, run.id)


def stopped(slurm: FakeSlurm, home: Home, run: Run) -> Run:
    """Return a run that was sent, and was cancelled after some steps."""
    queue.submit(home, run, SLURM)
    slurm.says("squeue", "7|CANCELLED|None|0|\n")
    write_json(run.folder / "status.json", {"state": "stopped", "step": 5})
    queue.advance(home)
    return runs.read(home, run.id)


@pytest.mark.parametrize("command", ["sinfo", "srun", "sbatch"])
def test_home_is_not_locked_while_a_run_is_sent(
    slurm: FakeSlurm, home: Home, new_run: NewRun, command: str
) -> None:
    run = new_run()
    with hanging(slurm, command, lambda: queue.submit(home, run, SLURM)), locked(home, seconds=0):
        pass
    assert runs.read(home, run.id).submission


@pytest.mark.parametrize("command", ["squeue", "sbatch"])
def test_home_is_not_locked_while_a_run_is_resumed(
    slurm: FakeSlurm, home: Home, new_run: NewRun, command: str
) -> None:
    run = stopped(slurm, home, new_run())
    with hanging(slurm, command, lambda: queue.submit(home, run)), locked(home, seconds=0):
        pass


def test_home_is_not_locked_while_a_run_is_stopped(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = queue.submit(home, new_run(), SLURM)
    with hanging(slurm, "scancel", lambda: launch.request_stop(run)), locked(home, seconds=0):
        pass


def test_home_is_not_locked_while_a_job_that_ignores_a_stop_is_cancelled(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = queue.submit(home, new_run(), SLURM)
    slurm.says("squeue", "7|RUNNING|None|0|\n")
    write_json(run.folder / "stop", {"time": 1.0})
    with hanging(slurm, "scancel", lambda: clusters.refresh(home)), locked(home, seconds=0):
        pass


def test_run_that_is_sent_says_so(sending: Run) -> None:
    assert sending.state == "queued"
    assert state_sentence(sending) == "Being sent to Slurm."


def test_run_that_is_sent_is_among_those_of_the_clusters(sending: Run, home: Home) -> None:
    assert [run.id for run in queue.ask_clusters(home)] == [sending.id]


@pytest.mark.parametrize(
    "act",
    [
        lambda home, run: edits.delete(home, run.id),
        lambda home, run: results.change_num_devices(home, run.id, 2),
        lambda home, run: queue.submit(home, run, SLURM),
        lambda home, run: queue.submit(home, run, Placement()),
    ],
    ids=["delete", "edit", "resume", "resume here"],
)
def test_run_that_is_sent_is_left_alone(
    sending: Run, home: Home, act: Callable[[Home, Run], object]
) -> None:
    said = f"{sending.id} is being sent to Slurm; wait until .* runs stop {sending.id}"
    with pytest.raises(SpecError, match=said):
        act(home, sending)


def test_run_that_waits_on_a_cluster_names_its_job(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = queue.submit(home, new_run(), SLURM)
    with pytest.raises(SpecError, match="waits on Slurm job 7; stop it first"):
        edits.delete(home, run.id)


def test_run_that_is_stopped_while_it_is_sent_is_taken_back(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = new_run()
    with hanging(slurm, "sbatch", lambda: queue.submit(home, run, SLURM)):
        launch.request_stop(runs.read(home, run.id))
        assert runs.read(home, run.id).state == "stopping"
    assert "scancel --state=PENDING 7" in slurm.asked


def test_all_answers_are_kept_before_the_first_run_is_taken_back(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    both, script = [new_run(), new_run()], home.path / "together.sh"
    with ThreadPoolExecutor() as pool, slurm.hangs("scancel"):
        with slurm.hangs("sbatch"):
            pool.submit(lambda: queue.submit_together(home, both, SLURM, script))
            wait_until(lambda: slurm.was_asked("sbatch"))
            for run in both:
                launch.request_stop(runs.read(home, run.id))
        wait_until(lambda: len([line for line in slurm.asked if "scancel" in line]) > 0)
        sent = [read_submission(run.folder) for run in both]
    assert [each and each.job_id for each in sent] == ["7_0", "7_1"]


def test_others_are_sent_together_without_one_that_was_sent(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    first, second = queue.submit(home, new_run(), SLURM), new_run()
    slurm.says("sbatch", "8\n")
    queue.submit_together(home, [first, second], SLURM, home.path / "together.sh")
    sent = [runs.read(home, run.id).submission for run in (first, second)]
    assert [each and each.job_id for each in sent] == ["7", "8"]


def test_run_whose_sender_was_killed_can_be_sent_again(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = new_run()
    with slurm.hangs("sbatch"):
        words = [sys.executable, "-c", SENDER, str(home.path), run.id]
        sender = subprocess.Popen(words, cwd=ROOT)
        wait_until(lambda: slurm.was_asked("sbatch"))
        sender.kill()
        sender.wait()
    assert runs.read(home, run.id).state == "interrupted"
    assert queue.submit(home, run, SLURM).state == "queued"


@pytest.fixture
def lost(slurm: FakeSlurm, home: Home, new_run: NewRun) -> Run:
    """Return a run whose sender has died after the cluster took it."""

    def submit_and_die(folder: Path, placement: Placement, num_devices: int) -> str:
        ENGINES["slurm"].submit(folder, placement, num_devices)
        raise KeyboardInterrupt

    run = new_run()
    engine = replace(ENGINES["slurm"], submit=submit_and_die)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("core.runs.sending.engine_of", lambda _placement: engine)
        queue.submit(home, run, SLURM)
    return runs.read(home, run.id)


def test_run_whose_sender_has_died_says_so(lost: Run) -> None:
    assert lost.state == "interrupted"
    assert lost.error.startswith("The program that sent it ended before Slurm answered. Resume it")


def test_run_whose_sender_has_died_can_be_sent_again(
    lost: Run, slurm: FakeSlurm, home: Home
) -> None:
    slurm.says("sbatch", "8\n")
    again = queue.submit(home, lost)
    assert again.submission
    assert (again.submission.job_id, again.submission.placement) == ("8", SLURM)


@pytest.mark.parametrize("placement", [SLURM, Placement()], ids=["there", "here"])
def test_job_whose_id_was_lost_does_not_train_beside_the_next(
    lost: Run, home: Home, placement: Placement
) -> None:
    script = (lost.folder / "submit.sh").read_text()
    again = queue.submit(home, lost, placement)
    assert (lost.folder / "probe.txt").read_text().strip() not in script
    if placement.is_here:
        ended(home, again)


def test_job_whose_id_was_lost_is_shown_as_its_program_says(lost: Run, home: Home) -> None:
    write_json(lost.folder / "status.json", {"state": "running", "step": 3})
    run = runs.read(home, lost.id)
    assert run.state == "running"
    assert "The program that sent it ended before Slurm answered." in state_sentence(run)


def test_job_whose_id_was_lost_is_stopped_by_the_file(
    lost: Run, slurm: FakeSlurm, home: Home
) -> None:
    write_json(lost.folder / "status.json", {"state": "running", "step": 3})
    launch.request_stop(runs.read(home, lost.id))
    assert runs.read(home, lost.id).state == "stopping"
    assert not slurm.was_asked("scancel")


def test_run_whose_sender_has_died_can_be_deleted(lost: Run, home: Home) -> None:
    edits.delete(home, lost.id)
    assert edits.deleted(home) == (lost.id,)


def test_job_that_has_ended_does_not_train_beside_a_run_of_this_machine(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = stopped(slurm, home, new_run())
    script = (run.folder / "submit.sh").read_text()
    ended(home, queue.submit(home, run, Placement()))
    assert (run.folder / "probe.txt").read_text().strip() not in script
    assert read_submission(run.folder) is None


def test_runs_that_were_taken_before_a_refusal_are_asked_about(
    slurm: FakeSlurm, home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_run(), new_run(num_devices=2)  # of two sizes: no single job
    real = ENGINES["slurm"].submit

    def take_one(folder: Path, placement: Placement, num_devices: int) -> str:
        if folder == second.folder:
            raise SpecError(Problem("on", "Slurm refuses it", "ask for less"))
        return real(folder, placement, num_devices)

    engine = replace(ENGINES["slurm"], submit=take_one)
    monkeypatch.setattr("core.runs.sending.engine_of", lambda _placement: engine)
    with pytest.raises(SpecError, match="Slurm refuses it"):
        queue.submit_together(home, [first, second], SLURM, home.path / "together.sh")
    queue.advance(home)
    assert read_schedule(home).submitted == (first.id,)
    assert runs.read(home, second.id).state == "failed"
