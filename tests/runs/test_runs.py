"""Run folder and its process, with a fast stand-in for the training program."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import runs
from core.dataset.rewrite import Composed, in_child
from core.device import identify, this_boot
from core.job import RunNotFound, SpecError
from core.resolve import resolve
from core.runs import Home, Run, edits, launch
from core.training.contract.files import sha256_of, write_json
from core.training.contract.process_id import ProcessId
from tests.builders.dataset_files import rows_in, write_json_rows
from tests.builders.fake_runs import (
    CRASH_AT_STEP_3,
    DIE_SILENTLY,
    NEVER_END,
    NewRun,
    ended,
    start,
    stepping,
)


def test_a_new_run_has_everything_needed_to_run_elsewhere(new_run: NewRun) -> None:
    run = new_run(lora_r=4)
    assert {"job.json", "estimate.json", "requirements.txt", "training", "data"} <= {
        path.name for path in run.folder.iterdir()
    }
    assert run.job.dataset == "data/train.jsonl"
    assert (run.folder / run.job.dataset).stat().st_size > 0
    assert run.job.lora_r == 4
    assert run.state == "starting"


def test_a_run_that_cannot_be_created_leaves_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.creation.PROGRAM", Path("/nowhere"))
    with pytest.raises(OSError):
        runs.create(home, resolve({}), {})
    assert list(home.runs.iterdir()) == []


def _with_eval_rows(folder: Path, *numbers: int) -> Mapping[str, object]:
    """Return the fields of a job that trains on rows 0 to 3 and evaluates these."""
    train = write_json_rows(folder / "a.jsonl", ({"text": str(number)} for number in range(4)))
    held_out = write_json_rows(folder / "b.jsonl", ({"text": str(each)} for each in numbers))
    return {"dataset": str(train), "eval_dataset": str(held_out)}


def test_a_run_that_evaluates_trained_rows_only_is_refused(home: Home, tmp_path: Path) -> None:
    fields = _with_eval_rows(tmp_path, 1, 3)
    with pytest.raises(SpecError, match="eval_dataset: every row is trained on too"):
        runs.create(home, resolve(fields), {})
    assert list(home.runs.iterdir()) == []


def test_a_file_that_is_exchanged_in_between_changes_no_run(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_json_rows(tmp_path / "a.jsonl", [{"text": "checked"}])
    checked, compose = {file: sha256_of(file)}, in_child.compose

    def exchange(*arguments: Any) -> Composed:
        file.write_text('{"text": "other"}')
        return compose(*arguments)

    monkeypatch.setattr(in_child, "compose", exchange)
    run = runs.create(home, resolve({"dataset": str(file)}), {}, checked)
    assert rows_in(run.folder / "data" / "train.jsonl") == [{"text": "checked"}]


@pytest.mark.parametrize("field", ["dataset", "eval_dataset", "mix"])
def test_a_file_that_has_changed_since_its_check_makes_no_run(
    field: str, home: Home, tmp_path: Path
) -> None:
    file = write_json_rows(tmp_path / "a.jsonl", [{"text": "checked"}])
    resolved = resolve({"dataset": "demo", field: str(file)})
    with pytest.raises(SpecError, match=f"{field}: a.jsonl has changed since"):
        runs.create(home, resolved, {}, {file: "0" * 64})
    assert list(home.runs.iterdir()) == []


def test_a_run_counts_the_evaluation_rows_that_it_trains_on(home: Home, tmp_path: Path) -> None:
    run = runs.create(home, resolve(_with_eval_rows(tmp_path, 3, 4, 5)), {})
    manifest = json.loads((run.folder / "data" / "manifest.json").read_text())
    assert manifest["leaked_eval_rows"] == 1


def test_an_unfinished_folder_is_removed_after_a_day(home: Home, new_run: NewRun) -> None:
    left, fresh, foreign = (
        home.runs / name for name in (".20260101-000000-a-lora", ".20260102-000000-b-lora", ".git")
    )
    for folder in (left, fresh, foreign):
        (folder / "data").mkdir(parents=True)
    for folder in (left, foreign):
        os.utime(folder, (1, 1))
    new_run()
    assert not left.exists()
    assert fresh.exists()
    assert foreign.exists()


def test_a_run_trains_to_its_end(home: Home, new_run: NewRun) -> None:
    run = new_run()
    start(home, run)
    run = ended(home, run)
    assert (run.state, run.step, run.error) == ("finished", 20, "")
    assert [row["step"] for row in run.metrics()] == list(range(1, 21))


def test_a_stopped_run_has_a_checkpoint_and_can_resume(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=NEVER_END)
    start(home, run)
    launch.request_stop(stepping(home, run))
    run = ended(home, run)
    assert run.state == "stopped"
    assert run.has_checkpoint
    start(home, run)
    assert stepping(home, run).state == "running"
    assert not (run.folder / "stop").exists()


def test_a_run_stopped_before_its_program_starts_is_stopped(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=NEVER_END)
    start(home, run)
    launch.request_stop(runs.read(home, run.id))
    assert ended(home, run).state == "stopped"


def test_stopping_an_ended_run_does_nothing(home: Home, new_run: NewRun) -> None:
    run = new_run()
    start(home, run)
    run = ended(home, run)
    launch.request_stop(run)
    assert not (run.folder / "stop").exists()


def test_a_failure_has_the_message_of_the_program(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=CRASH_AT_STEP_3)
    start(home, run)
    run = ended(home, run)
    assert run.state == "failed"
    assert "backward" in run.error


def test_a_program_that_dies_silently_is_noticed(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=DIE_SILENTLY)
    start(home, run)
    run = ended(home, run)
    assert run.state == "failed"
    assert "killed by the weather" in run.error


def test_a_killed_program_is_noticed_within_five_seconds(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=NEVER_END)
    start(home, run)
    process = stepping(home, run).process
    assert process
    os.kill(process.pid, signal.SIGKILL)
    assert launch.wait(home, run.id, 5).state == "failed"


def test_a_reused_pid_is_not_the_run(home: Home, new_run: NewRun) -> None:
    run = new_run()
    mine = identify(os.getpid())
    assert mine
    status = {
        "state": "running",
        "pid": mine.pid,
        "pid_start_time": mine.start_time - 100,
        "boot_id": mine.boot_id,
    }
    write_json(run.folder / "status.json", status)
    run = runs.read(home, run.id)
    assert run.state == "failed"
    launch.kill(run)  # would end this very test


@pytest.fixture
def by_hand() -> Iterator[ProcessId]:
    """Return a process that Tailor has not launched."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = identify(process.pid)
        assert identity
        yield identity
        process.kill()


def resumed(run: Run, by_hand: ProcessId) -> Run:
    """Return a run whose program a user has started by hand after a restart."""
    launched = replace(by_hand, pid=by_hand.pid + 1, boot_id="before the restart")
    write_json(run.folder / "process.json", launched.to_json())
    write_json(run.folder / "status.json", {"state": "running", **by_hand.to_json()})
    return runs.read(run.home, run.id)


def test_a_run_that_was_resumed_by_hand_is_running(new_run: NewRun, by_hand: ProcessId) -> None:
    assert resumed(new_run(), by_hand).state == "running"


def test_the_process_that_a_person_started_executes_the_run(
    new_run: NewRun, by_hand: ProcessId
) -> None:
    assert resumed(new_run(), by_hand).process == by_hand


def test_a_run_that_died_after_a_resume_by_hand_failed(new_run: NewRun, by_hand: ProcessId) -> None:
    dead = replace(by_hand, start_time=by_hand.start_time - 100)
    assert resumed(new_run(), dead).state == "failed"


def test_a_reboot_makes_a_run_interrupted(home: Home, new_run: NewRun) -> None:
    run = new_run()
    status = {"state": "running", "pid": os.getpid(), "pid_start_time": 1.0, "boot_id": "another"}
    write_json(run.folder / "status.json", status)
    assert runs.read(home, run.id).state == "interrupted"


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/etc", "a/b", "../runs", "x\0y", "C:\\x", "a" * 300, "no-such-run"]
)
def test_only_a_run_can_be_read(home: Home, name: str) -> None:
    with pytest.raises(RunNotFound):
        runs.read(home, name)


def test_a_link_is_not_a_run(home: Home, new_run: NewRun) -> None:
    (home.runs / "linked").symlink_to(new_run().folder)
    with pytest.raises(RunNotFound):
        runs.read(home, "linked")


def test_runs_are_listed_newest_first_without_other_folders(home: Home, new_run: NewRun) -> None:
    older, newer = new_run(), new_run()
    os.utime(older.folder / "job.json", (1, 1))
    (home.runs / "stranger").mkdir()
    (home.runs / "broken").mkdir()
    (home.runs / "broken" / "job.json").write_text("{")
    (home.runs / "deep").mkdir()
    (home.runs / "deep" / "job.json").write_text("[" * 100_000)
    assert [run.id for run in runs.listing.list_runs(home)] == [newer.id, older.id]


def test_a_run_is_deleted_only_after_it_has_ended(home: Home, new_run: NewRun) -> None:
    idle, busy = new_run(), new_run(seed=NEVER_END)
    start(home, busy)
    write_json(idle.folder / "status.json", {"state": "finished"})
    edits.delete(home, idle.id)
    assert not idle.folder.exists()
    with pytest.raises(SpecError, match="stop it first"):
        edits.delete(home, busy.id)


def test_secrets_stay_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "passed on")
    environment = launch.environment()
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["HF_TOKEN"] == "passed on"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "CC",
            "CXX",
            "CPATH",
            "C_INCLUDE_PATH",
            "LIBRARY_PATH",
            "LD_LIBRARY_PATH",
            "TORCHINDUCTOR_CACHE_DIR",
        ),
        *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    ],
)
def test_variables_of_compilers_and_torch_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "chosen")
    assert launch.environment()[name] == "chosen"


def test_a_process_of_another_boot_is_not_alive() -> None:
    mine = identify(os.getpid())
    assert mine
    assert mine.boot_id == this_boot()
