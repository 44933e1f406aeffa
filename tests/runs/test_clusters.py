"""Test runs on a cluster whose commands are fake: their states, and what users do with them."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core import runs
from core.job import SpecError
from core.runs import Home, Run, clusters, edits, launch, queue
from core.runs.engines import (
    ENGINES,
    ClusterSilent,
    ClusterState,
    Placement,
    Submission,
    read_submission,
    write_submission,
)
from core.runs.home import locked, read_schedule, write_schedule
from core.runs.sentences import state_sentence
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun, ended
from tests.builders.fake_slurm import FakeSlurm, put_on_path

SLURM = Placement("slurm", time="1:00:00")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr("core.runs.clusters.SECONDS_BETWEEN_QUESTIONS", 0)
    monkeypatch.setattr("core.runs.clusters.SECONDS_AFTER_SILENCE", 0)
    monkeypatch.setattr("core.runs.states.SECONDS_TO_BE_SEEN", 0)
    slurm = put_on_path(tmp_path / "commands", monkeypatch)
    slurm.says("squeue", "7|PENDING|Priority|0|\n")
    return slurm


@pytest.fixture
def sent(slurm: FakeSlurm, home: Home, new_run: NewRun) -> Run:
    """Return a run that waits on the cluster."""
    queue.submit(home, new_run(), SLURM)
    return asked(home)


def asked(home: Home) -> Run:
    """Return the only run, after its cluster was asked."""
    queue.advance(home)
    return runs.listing.list_runs(home)[0]


def now_says(slurm: FakeSlurm, home: Home, row: str, **status: object) -> Run:
    """Return the run once the cluster says something else, and its program too."""
    slurm.says("squeue", f"7|{row}|\n")
    run = runs.listing.list_runs(home)[0]
    if status:
        write_json(run.folder / "status.json", status)
    return asked(home)


def test_run_waits_while_the_cluster_says_so(sent: Run) -> None:
    assert sent.state == "queued"


def test_cluster_knows_why_a_program_was_killed(slurm: FakeSlurm, home: Home, sent: Run) -> None:
    words = {"state": "failed", "error": "Process 2 of 2 was killed.", "cause": "signal"}
    run = now_says(slurm, home, "OUT_OF_MEMORY|None|0|", **words)
    assert run.status.cause == "signal"
    assert run.error.startswith("Process 2 of 2 was killed. Slurm job 7: OUT_OF_MEMORY: it took")


def test_run_is_refused_before_the_start_where_a_node_does_not_see_it(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    slurm.says("srun", "0: node-7\n")
    with pytest.raises(SpecError, match=r"the node node-7 does not see .* put --home on storage"):
        queue.submit(home, new_run(), SLURM)
    assert not [line for line in slurm.asked if line.startswith("sbatch")]


def test_nodes_are_asked_once_for_several_runs(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    for _number in range(2):
        queue.submit(home, new_run(), SLURM)
    assert len([line for line in slurm.asked if line.startswith("srun")]) == 1


def test_reason_of_the_cluster_is_told(sent: Run) -> None:
    sentence = "Waiting on Slurm job 7: PENDING (Priority), other jobs are before it."
    assert state_sentence(sent) == sentence


def test_run_on_a_cluster_takes_no_device_here(sent: Run, home: Home, new_run: NewRun) -> None:
    here = queue.submit(home, new_run())
    assert ended(home, here).state == "finished"


def test_run_runs_as_its_program_says(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    run = now_says(slurm, home, "RUNNING|None|0", state="running", step=3)
    assert (run.state, run.step) == ("running", 3)


def test_finished_run_is_no_longer_asked_about(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    run = now_says(slurm, home, "COMPLETED|None|0", state="finished")
    num_asked = len(slurm.asked)
    asked(home)
    assert (run.state, len(slurm.asked)) == ("finished", num_asked)


def test_preempted_run_waits_again(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    run = now_says(slurm, home, "PENDING|BeginTime|0", state="stopped", step=5)
    assert run.state == "queued"


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ("COMPLETING|None|0", "stopping"),
        ("PENDING|BeginTime|0", "queued"),
        ("FAILED|NonZeroExitCode|256", "failed"),
    ],
)
def test_cluster_says_whether_programs_that_were_killed_start_again(
    sent: Run, slurm: FakeSlurm, home: Home, row: str, state: str
) -> None:
    killed = {"state": "failed", "cause": "signal", "error": "Process 2 of 2 was killed."}
    assert now_says(slurm, home, row, **killed).state == state


def test_signal_of_the_cluster_is_no_request_of_a_user(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    (sent.folder / "stop").touch()
    run = now_says(slurm, home, "PENDING|BeginTime|0", state="stopped", step=5)
    assert run.state == "queued"


def test_run_that_was_told_to_end_is_stopped_once_the_job_is_over(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    now_says(slurm, home, "RUNNING|None|0", state="stopped", step=5)
    before = runs.read(home, sent.id).state
    run = now_says(slurm, home, "FAILED|NonZeroExitCode|33280")
    assert (before, run.state) == ("stopping", "stopped")


def test_program_that_died_leaves_the_word_of_the_cluster(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    run = now_says(slurm, home, "TIMEOUT|TimeLimit|0", state="running", step=5)
    assert (run.state, "Slurm job 7: TIMEOUT (TimeLimit)" in run.error) == ("interrupted", True)


def test_silent_cluster_changes_no_state(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    slurm.refuses("squeue", "Unable to contact slurm controller\n")
    run = asked(home)
    assert run.state == "queued"
    assert "Unable to contact" in state_sentence(run)


def test_silent_cluster_does_not_hide_the_end_of_a_run(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    slurm.refuses("squeue", "Unable to contact slurm controller\n")
    assert now_says(slurm, home, "", state="stopped").state == "stopped"


@pytest.fixture
def lost(sent: Run, slurm: FakeSlurm, home: Home) -> Run:
    """Return a run whose cluster has fallen silent while it trained."""
    now_says(slurm, home, "RUNNING|None|0", state="running", step=3)
    slurm.refuses("squeue", "Unable to contact slurm controller\n")
    return asked(home)


def test_running_run_says_that_its_cluster_does_not_answer(lost: Run) -> None:
    assert lost.state == "running"
    assert "Slurm does not answer: Unable to contact slurm controller." in state_sentence(lost)


def test_run_of_a_silent_cluster_stops_as_its_program_says(lost: Run, home: Home) -> None:
    launch.request_stop(lost)
    assert runs.read(home, lost.id).state == "stopping"


def test_run_of_a_silent_cluster_that_says_nothing_is_given_up(lost: Run, home: Home) -> None:
    write_json(lost.folder / "stop", {"time": time.time() - 10_000})
    run = runs.read(home, lost.id)
    assert run.state == "interrupted"
    assert "Nothing says whether the program still runs" in run.error


def test_waiting_run_of_a_silent_cluster_can_be_stopped(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    slurm.refuses("squeue", "Unable to contact slurm controller\n")
    launch.request_stop(asked(home))
    assert asked(home).state == "stopped"


def test_stopping_a_waiting_run_cancels_its_job(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    launch.request_stop(sent)
    assert "scancel --state=PENDING 7" in slurm.asked
    assert now_says(slurm, home, "CANCELLED|None|0").state == "stopped"


def test_signal_of_the_cluster_keeps_no_user_from_stopping(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    (sent.folder / "stop").touch()
    launch.request_stop(now_says(slurm, home, "PENDING|BeginTime|0", state="stopped", step=5))
    assert "scancel --state=PENDING 7" in slurm.asked


def test_stopping_a_running_run_asks_for_a_checkpoint(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    run = now_says(slurm, home, "RUNNING|None|0", state="running")
    launch.request_stop(run)
    assert "scancel --signal=TERM --batch --state=RUNNING 7" in slurm.asked
    assert runs.read(home, run.id).state == "stopping"


def test_run_that_does_not_stop_in_time_is_cancelled(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    run = now_says(slurm, home, "RUNNING|None|0", state="running")
    write_json(run.folder / "stop", {"time": time.time() - 10_000})
    asked(home)
    assert slurm.asked[-1] == "scancel 7"


def test_resuming_sends_it_to_the_same_place(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    (sent.folder / "submit.sh").write_text("#!/bin/bash\n# mine\n")
    run = now_says(slurm, home, "CANCELLED|None|0", state="stopped")
    slurm.says("sbatch", "8\n")
    again = queue.submit(home, run)
    assert again.submission
    assert (again.submission.job_id, again.submission.placement) == ("8", SLURM)
    assert "# mine" in (again.folder / "submit.sh").read_text()


def test_resuming_with_other_settings_writes_another_script(
    sent: Run, slurm: FakeSlurm, home: Home
) -> None:
    run = now_says(slurm, home, "CANCELLED|None|0", state="stopped")
    queue.submit(home, run, Placement("slurm", partition="cpu"))
    assert "--partition=cpu" in (run.folder / "submit.sh").read_text()


def test_run_of_a_cluster_may_go_on_here(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    run = now_says(slurm, home, "CANCELLED|None|0", state="stopped")
    here = queue.submit(home, run, Placement())
    assert (ended(home, here).state, read_submission(run.folder)) == ("finished", None)


def test_run_with_a_living_job_is_not_sent_twice(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    slurm.says("squeue", "7|RUNNING|None|0|\n")
    write_json(sent.folder / "status.json", {"state": "failed"})
    run = runs.read(home, sent.id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.runs.clusters.SECONDS_TO_EXIT", 0)
        with pytest.raises(SpecError, match="Slurm job 7 of this run is still RUNNING"):
            queue.submit(home, run)


def test_refused_run_says_why(slurm: FakeSlurm, home: Home, new_run: NewRun) -> None:
    slurm.refuses("sbatch", "sbatch: error: Invalid account\n")
    run = new_run()
    with pytest.raises(SpecError, match="Invalid account"):
        queue.submit(home, run, SLURM)
    assert "Invalid account" in runs.read(home, run.id).error


def test_refused_resume_leaves_the_run_as_it_was(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    run = now_says(slurm, home, "CANCELLED|None|0", state="stopped", step=5)
    slurm.refuses("sbatch", "sbatch: error: Invalid account\n")
    with pytest.raises(SpecError):
        queue.submit(home, run, Placement("slurm", account="other"))
    assert (runs.read(home, run.id).state, runs.read(home, run.id).step) == ("stopped", 5)


def test_run_with_a_job_cannot_be_deleted(sent: Run, home: Home) -> None:
    with pytest.raises(SpecError, match="waits on Slurm job 7"):
        edits.delete(home, sent.id)


def test_answer_about_an_earlier_job_is_not_kept(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    submission = read_submission(sent.folder)
    assert submission
    other = type(submission)(**{**vars(submission), "job_id": "99"})
    write_submission(other)
    slurm.says("squeue", "7|FAILED|None|0|\n")
    assert asked(home).state != "failed"


def test_copied_folder_has_no_job(sent: Run, home: Home, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "cluster.json").write_bytes((sent.folder / "cluster.json").read_bytes())
    assert read_submission(copy) is None


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"placement": 3, "state": [], "job_id": 4}'])
def test_damaged_file_hides_no_run(sent: Run, home: Home, damage: str) -> None:
    (sent.folder / "cluster.json").write_text(damage)
    home.touch()
    assert [run.id for run in runs.listing.list_runs(home)] == [sent.id]


def test_silent_cluster_says_nothing_of_another(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(submissions: Sequence[Submission]) -> Mapping[str, ClusterState]:
        if any("dead" in each.placement.address for each in submissions):
            raise ClusterSilent("nothing listens")
        return {each.folder.name: ClusterState("running", "RUNNING") for each in submissions}

    monkeypatch.setattr("core.runs.clusters.SECONDS_BETWEEN_QUESTIONS", 0)
    monkeypatch.setattr("core.runs.clusters.ENGINES", {"ray": replace(ENGINES["ray"], ask=ask)})
    found = {}
    for name in ("dead", "alive"):
        run = new_run()
        inode = run.folder.stat().st_ino
        place = Placement("ray", address=f"http://{name}")
        write_submission(Submission(run.folder, place, "1", 1.0, inode))
        found[name] = run
    with locked(home):
        write_schedule(
            home, replace(read_schedule(home), submitted=tuple(r.id for r in found.values()))
        )
    clusters.refresh(home)
    silences = {name: read_submission(run.folder).silence for name, run in found.items()}
    assert silences == {"dead": "Ray does not answer: nothing listens.", "alive": ""}


def test_hung_cluster_does_not_hold_up_the_runs_of_this_machine(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr("core.runs.queue.clusters.refresh", lambda home: is_over.wait(60))
    queue.keep_advancing(home)
    run = new_run()
    with locked(home):
        write_schedule(home, replace(read_schedule(home), waiting=(run.id,)))
    assert ended(home, run).state == "finished"
    is_over.set()


def test_who_waits_for_a_stop_asks_the_cluster(sent: Run, slurm: FakeSlurm, home: Home) -> None:
    launch.request_stop(sent)
    slurm.says("squeue", "7|CANCELLED|None|0|\n")
    assert launch.wait(home, sent.id, seconds=5).state == "stopped"
