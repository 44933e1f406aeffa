"""Test runs that a cluster does not take: a new one keeps its place, another is what it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from core import runs
from core.job import Problem, SpecError
from core.runs import Home, Run, edits, queue, results
from core.runs.engines import ENGINES, Placement
from core.runs.home import read_schedule
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun, ended
from tests.builders.fake_slurm import FakeSlurm

SLURM = Placement("slurm", time="1:00:00")
ASKED = Placement("slurm", partition="gpu", account="mine", time="1:00:00", gres="gpu:a100:2")


def stopped(slurm: FakeSlurm, home: Home, run: Run) -> Run:
    """Return a run that was sent, and was cancelled after some steps."""
    queue.submit(home, run, SLURM)
    slurm.says("squeue", "7|CANCELLED|None|0|\n")
    write_json(run.folder / "status.json", {"state": "stopped", "step": 5})
    queue.advance(home)
    return runs.read(home, run.id)


@pytest.fixture
def refused(slurm: FakeSlurm, home: Home, new_run: NewRun) -> Run:
    """Return a new run that Slurm has refused once."""
    slurm.refuses("sbatch", "sbatch: error: Invalid account\n")
    run = new_run()
    with pytest.raises(SpecError, match=f"runs resume {run.id} {ASKED.flags}"):
        queue.submit(home, run, ASKED)
    (slurm.folder / "sbatch.error").unlink()
    queue.advance(home)
    return runs.read(home, run.id)


def test_new_run_that_was_refused_keeps_its_place(refused: Run, home: Home) -> None:
    assert (refused.state, refused.placement) == ("failed", ASKED)
    assert refused.error == "Slurm refuses it: Invalid account."
    assert read_schedule(home).submitted == ()


def test_new_run_that_was_refused_is_resumed_there(refused: Run, home: Home) -> None:
    again = queue.submit(home, refused)
    assert again.submission
    assert (again.submission.job_id, again.placement) == ("7", ASKED)
    assert again.state == "queued"


def test_new_run_that_was_refused_trains_here_if_asked_to(refused: Run, home: Home) -> None:
    here = ended(home, queue.submit(home, refused, Placement()))
    assert (here.state, here.submission) == ("finished", None)


def test_run_that_is_refused_again_keeps_its_last_place(
    refused: Run, slurm: FakeSlurm, home: Home
) -> None:
    slurm.refuses("sbatch", "sbatch: error: Invalid partition\n")
    with pytest.raises(SpecError, match="Invalid partition"):
        queue.submit(home, refused, SLURM)
    now = runs.read(home, refused.id)
    assert (now.placement, now.error) == (SLURM, "Slurm refuses it: Invalid partition.")
    (slurm.folder / "sbatch.error").unlink()
    assert "--account" not in (queue.submit(home, now).folder / "submit.sh").read_text()


def test_run_refused_on_other_devices_has_no_script_of_another_place(
    refused: Run, slurm: FakeSlurm, home: Home
) -> None:
    slurm.refuses("sbatch", "sbatch: error: Invalid partition\n")
    with pytest.raises(SpecError, match="Invalid partition"):
        results.resume_on(home, refused, 2, SLURM)
    (slurm.folder / "sbatch.error").unlink()
    again = queue.submit(home, runs.read(home, refused.id))
    assert (again.job.num_devices, again.placement) == (refused.job.num_devices, SLURM)
    assert "--account" not in (again.folder / "submit.sh").read_text()


def test_new_run_whose_sbatch_hangs_keeps_its_place(
    slurm: FakeSlurm, home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.engines.slurm.SECONDS_TO_SUBMIT", 0.2)
    run = new_run()
    said = f"sbatch has not answered .* try again: .* runs resume {run.id} {SLURM.flags}"
    with slurm.hangs("sbatch"), pytest.raises(SpecError, match=said):
        queue.submit(home, run, SLURM)
    assert runs.read(home, run.id).placement == SLURM


def test_new_run_that_was_refused_can_be_deleted(refused: Run, home: Home) -> None:
    edits.delete(home, refused.id)
    assert edits.deleted(home) == (refused.id,)


def test_script_of_a_user_is_kept_beside_that_for_another_place(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = stopped(slurm, home, new_run())
    (run.folder / "submit.sh").write_text("#!/bin/bash\n#SBATCH --mem=64G\n")
    queue.submit(home, run, ASKED)
    assert "--mem=64G" in (run.folder / "submit.sh.before").read_text()
    assert "--partition=gpu" in (run.folder / "submit.sh").read_text()


def test_script_of_a_user_survives_a_refusal_at_another_place(
    slurm: FakeSlurm, home: Home, new_run: NewRun
) -> None:
    run = stopped(slurm, home, new_run())
    (run.folder / "submit.sh").write_text("#!/bin/bash\n#SBATCH --mem=64G\n")
    slurm.refuses("sbatch", "sbatch: error: Invalid account\n")
    with pytest.raises(SpecError, match="Invalid account"):
        queue.submit(home, run, ASKED)
    assert "--mem=64G" in (run.folder / "submit.sh").read_text()
    assert not list(run.folder.glob("*submit.sh.before"))


def test_refusal_on_a_full_disk_leaves_what_the_program_wrote(
    slurm: FakeSlurm, home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(slurm, home, new_run())
    before = (run.folder / "status.json").read_bytes()

    def fill_disk(*_arguments: object) -> str:
        def fail(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        monkeypatch.setattr(Path, "write_bytes", fail)
        raise SpecError(Problem("on", "Slurm refuses it", "ask for less"))

    engine = replace(ENGINES["slurm"], submit=fill_disk)
    monkeypatch.setattr("core.runs.sending.engine_of", lambda _placement: engine)
    with pytest.raises(OSError, match="No space left"):
        queue.submit(home, run, SLURM)
    assert (run.folder / "status.json").read_bytes() == before


def test_run_whose_script_cannot_be_written_is_failed_and_says_why(
    slurm: FakeSlurm, home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.runs.engines.script.write_script", fail)
    with pytest.raises(OSError, match="No space left"):
        queue.submit(home, new_run(), SLURM)
    run = runs.listing.list_runs(home)[0]
    assert (run.state, run.error) == ("failed", "No space left on device.")


def test_resumed_run_that_cannot_be_sent_is_what_it_was(
    slurm: FakeSlurm, home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    run = stopped(slurm, home, new_run())
    (run.folder / "submit.sh").unlink()
    monkeypatch.setattr("core.runs.engines.script.write_script", fail)
    with pytest.raises(OSError, match="No space left"):
        queue.submit(home, run, SLURM)
    assert runs.read(home, run.id).step == 5
