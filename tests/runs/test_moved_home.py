"""Test homes and runs that are moved, copied or removed, and homes that are not safe."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import runs
from core.job import SpecError
from core.models import DEMO_DIR
from core.resolve import resolve
from core.runs import Home, Run, launch, queue
from core.training.checkpoints.folder import VerifiedCheckpoint
from core.training.checkpoints.identity import allowed_changes
from core.training.contract.job import absolute_places, is_moved
from tests.builders.fake_runs import NEVER_END, NewRun, stepping
from tests.builders.paths import ROOT

SECONDS_TO_END = 10


@pytest.fixture
def next_run(home: Home, new_run: NewRun) -> Run:
    """Return a run whose model is the result of another run."""
    output = new_run().folder / "output"
    shutil.copytree(DEMO_DIR, output)
    return runs.create(home, resolve({"model": str(output), "dataset": "demo"}), {})


def moved(home: Home, tmp_path: Path) -> Home:
    shutil.move(home.path, tmp_path / "elsewhere")
    return Home.find(str(tmp_path / "elsewhere"))


def test_a_job_file_names_no_path_of_its_home(home: Home, next_run: Run) -> None:
    assert str(home.path) not in (next_run.folder / "job.json").read_text()
    assert Path(next_run.job.model).parent.parent == home.runs


def test_a_moved_home_knows_its_models(home: Home, next_run: Run, tmp_path: Path) -> None:
    place = moved(home, tmp_path)
    job = runs.read(place, next_run.id).job
    assert Path(job.model).is_relative_to(place.path)
    assert Path(job.model).is_dir()


def test_a_moved_home_of_an_early_version_is_mended(
    home: Home, next_run: Run, tmp_path: Path
) -> None:
    job_file = next_run.folder / "job.json"
    fields = json.loads(job_file.read_text())
    job_file.write_text(json.dumps({**fields, "model": next_run.job.model}))
    place = moved(home, tmp_path)
    run = queue.submit(place, runs.read(place, next_run.id))
    written = json.loads((run.folder / "job.json").read_text())["model"]
    launch.kill(run)
    assert written == fields["model"]
    assert Path(run.job.model).is_dir()


def test_the_program_finds_what_a_job_file_names(home: Home, next_run: Run) -> None:
    fields = json.loads((next_run.folder / "job.json").read_text())
    assert absolute_places(fields, next_run.folder)["model"] == next_run.job.model


@pytest.mark.parametrize(
    ("new", "is_same"), [("/b/runs/1-lora/output", True), ("/b/runs/2-lora/output", False)]
)
def test_a_moved_model_is_the_same_model(new: str, is_same: bool) -> None:
    assert is_moved("model", "/a/runs/1-lora/output", new) == is_same


def test_a_checkpoint_of_a_moved_home_is_resumed(tmp_path: Path) -> None:
    checkpoint = VerifiedCheckpoint(tmp_path, 3, 9, {"adapter": "/a/runs/1-lora/output"})
    assert allowed_changes(checkpoint, {"adapter": "/b/runs/1-lora/output"}) == ()


def test_a_copy_of_a_running_run_does_not_run(home: Home, new_run: NewRun) -> None:
    run = stepping(home, queue.submit(home, new_run(seed=NEVER_END)))
    shutil.copytree(run.folder, home.runs / "copy")
    copy = runs.read(home, "copy")
    assert (copy.state, copy.process) == ("interrupted", None)
    assert "a copy of a run" in copy.error
    launch.request_stop(copy)
    assert runs.read(home, run.id).state == "running"


def test_a_running_run_is_still_itself_in_a_moved_home(
    home: Home, new_run: NewRun, tmp_path: Path
) -> None:
    run = stepping(home, queue.submit(home, new_run(seed=NEVER_END)))
    found = runs.read(moved(home, tmp_path), run.id)
    launch.kill(found)
    assert found.state == "running"


def test_a_program_whose_folder_is_removed_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    program = (
        "import time\nfrom pathlib import Path\n"
        "from core.training.record.stop_request import StopRequest\n"
        f"request = StopRequest(Path({str(folder / 'stop')!r}))\n"
        "with request.handle_signals(lambda: None):\n    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        folder.rmdir()
        said = process.stdout.read()
        assert process.wait(SECONDS_TO_END) == 1
    assert said == f"{folder} was removed: the training ends.\n"


@pytest.mark.parametrize("mode", [0o777, 0o702])
def test_a_home_that_others_may_write_to_is_refused(home: Home, mode: int) -> None:
    home.path.chmod(mode)
    with pytest.raises(SpecError, match=r"other accounts may write to .* `chmod 700"):
        Home.find(str(home.path))


AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
OTHER_ACCOUNT = 54321


@AS_ROOT
def test_a_home_of_another_account_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_ACCOUNT)
    with pytest.raises(SpecError, match="belongs to another account"):
        Home.find(str(home.path))


@AS_ROOT
def test_root_may_use_the_home_of_one_other_account(home: Home) -> None:
    os.chown(home.path, OTHER_ACCOUNT, OTHER_ACCOUNT)
    assert Home.find(str(home.path)).other_owner == str(OTHER_ACCOUNT)


@AS_ROOT
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_home_of_several_other_accounts_is_refused(home: Home, mode: int) -> None:
    os.chown(home.path, OTHER_ACCOUNT, OTHER_ACCOUNT)
    home.path.chmod(mode)
    with pytest.raises(SpecError, match="other accounts may write to"):
        Home.find(str(home.path))


def test_a_home_of_its_own_has_no_other_owner(home: Home) -> None:
    assert home.other_owner == ""


def test_a_file_system_without_locks_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SpecError, match="has no locks: No locks available"):
        Home.find(str(home.path))


def test_a_page_whose_home_is_removed_ends(home: Home) -> None:
    command = [sys.executable, "app.py", "--no-browser", "--home", str(home.path)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        while "Tailor is at" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(1)
        shutil.rmtree(home.path)
        _, said = process.communicate(timeout=30)
    assert f"The page is closed: {home.path} was removed." in said
    assert process.returncode == 1
