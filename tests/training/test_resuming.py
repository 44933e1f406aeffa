"""Resuming: which job may continue a checkpoint, full disks, damaged files, and many crashes."""

import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.job import JobSpec
from core.training.checkpoints import VerifiedCheckpoint, allowed_changes, keep_smaller_batch
from core.training.checkpoints.identity import MAY_CHANGE
from core.training.contract.failures import TrainingError
from core.training.record import RunFiles
from tests.builders.paths import ROOT
from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    STOPPED,
    change_job,
    checkpoint_steps,
    error_of,
    job_of,
    lines_of,
    losses_of,
    make_run,
    make_stage_run,
    status_of,
    stop_after,
    train,
    train_again,
    train_in_two_parts,
    write_rows,
)

training = pytest.mark.training
FACTS = {
    "lora_r": 16,
    "model": "a/b",
    "seed": 1,
    "data_sha256": {"data/train.jsonl": "0" * 64},
    "logging_steps": 1,
}
FREE_BYTES = 3 * 2**20
ROWS_OF_THREE_STEPS = 6
"""Prompts; a step answers two of them four times."""


def checkpoint_with(facts: dict[str, Any]) -> VerifiedCheckpoint:
    return VerifiedCheckpoint(Path("checkpoint-6"), step=6, max_steps=9, facts=facts)


# The job


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_r": 8}, "lora_r was 16, now it is 8"),
        ({"model": "c/d"}, "model was 'a/b', now it is 'c/d'"),
        ({"seed": 2, "lora_r": 8}, "lora_r was 16, now it is 8; seed was 1, now it is 2"),
        (
            {"data_sha256": {"data/train.jsonl": "1" * 64}},
            "data_sha256 of data/train.jsonl was '0000",
        ),
        ({"data_sha256": {}}, "now it is absent"),
    ],
)
def test_a_forbidden_change_is_named_with_both_values(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(TrainingError, match="cannot be resumed from checkpoint-6") as raised:
        allowed_changes(checkpoint_with(FACTS), FACTS | changes)
    assert words in str(raised.value)
    assert raised.value.failure.cause == "checkpoint_mismatch"


def test_an_allowed_change_is_a_note() -> None:
    notes = allowed_changes(checkpoint_with(FACTS), FACTS | {"logging_steps": 5, "new_field": 1})
    assert notes == ("From step 6 on logging_steps is 5; it was 1.",)


def test_every_fact_that_may_change_is_a_field_or_the_versions() -> None:
    assert set(JobSpec.model_fields) >= MAY_CHANGE - {"versions"}


@pytest.mark.parametrize(
    ("rows", "passes", "kept"), [(2, 4, (2, 4)), (8, 1, (4, 2)), (2, 8, (4, 2))]
)
def test_only_a_smaller_batch_of_the_same_rows_is_kept(
    rows: int, passes: int, kept: tuple[int, int]
) -> None:
    facts = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes}
    job = job_of(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    job = keep_smaller_batch(job, checkpoint_with(facts))
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that leaves checkpoints of steps 4 and 6."""
    run = make_run(tmp_path_factory.mktemp("finished") / "run", save_steps=2)
    assert train(run) == FINISHED
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Copy the finished run, so that a test may change it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@training
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora_r": 8}, "lora_r was 16, now it is 8"),
        ({"gradient_accumulation_steps": 2}, "effective_batch_size was 4"),
    ],
)
def test_a_job_that_does_not_fit_its_checkpoint_is_refused(
    run: Path, change: dict[str, object], words: str
) -> None:
    change_job(run, **change)
    assert train_again(run) == FAILED
    assert words in status_of(run)["error"]
    assert status_of(run)["cause"] == "checkpoint_mismatch"


@training
def test_rows_that_have_changed_are_refused(run: Path) -> None:
    rows = (run / "data" / "train.jsonl").read_text()
    (run / "data" / "train.jsonl").write_text(rows.rstrip("\n"))
    assert train_again(run) == FAILED
    assert "data_sha256 of data/train.jsonl was" in status_of(run)["error"]


@training
def test_a_resumed_run_shows_where_it_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", save_steps=3)
    for step in (1, 3):
        with monkeypatch.context() as patched:
            stop_after(step, patched)
            assert train(run) == STOPPED
        (run / "stop").unlink()
    assert train(run) == FINISHED
    marks = {line["step"]: line["resumed_from"] for line in lines_of(run) if "resumed_from" in line}
    assert marks == {3: 2, 5: 4}
    assert status_of(run)["resumed_at"] == [2, 4]


# Damage


class Poison:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@training
def test_a_damaged_checkpoint_is_never_opened(run: Path, finished: Path, tmp_path: Path) -> None:
    for name in ("optimizer.pt", "rng_state.pth"):
        poison = pickle.dumps(Poison(tmp_path / "poisoned"))
        (run / "checkpoints" / "checkpoint-6" / name).write_bytes(poison)
    assert train_again(run) == FINISHED
    status = status_of(run)
    assert not (tmp_path / "poisoned").exists()
    assert status["resumed_at"] == [4]
    assert "checkpoint-6: optimizer.pt has" in status["skipped_checkpoints"][0]
    assert losses_of(run) == losses_of(finished)
    assert checkpoint_steps(run) == [4, 6]


# A full disk


@pytest.fixture
def fill_disk() -> Iterator[Callable[[bool], None]]:
    """Forbid this process to write large files (True), or allow it again (False)."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(is_full: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if is_full else hard_limit, hard_limit))

    yield limit
    limit(False)


@training
def test_a_checkpoint_that_does_not_fit_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill_disk: Callable[[bool], None]
) -> None:
    run = make_run(tmp_path / "run", save_steps=2)
    append = RunFiles.append_metrics

    def append_and_fill(run_files: RunFiles, step: int, *args: Any) -> None:
        append(run_files, step, *args)
        fill_disk(step in (3, 4))

    monkeypatch.setattr(RunFiles, "append_metrics", append_and_fill)
    assert train(run) == FINISHED
    status = status_of(run)
    assert checkpoint_steps(run) == [2, 6]
    assert status["checkpoint_step"] == 6
    assert status["warning"] is None
    assert len(status["notes"]) == 1
    assert "checkpoint of step 4 was not written: No space left" in status["notes"][0]
    assert len(losses_of(run)) == 6


@training
def test_a_result_that_does_not_fit_is_written_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill_disk: Callable[[bool], None]
) -> None:
    from core.training.loop.saver import Saver

    save_result = Saver.save_result

    def save_on_full_disk(saver: Saver, write: Callable[[Path], None], step: int) -> None:
        fill_disk(True)
        save_result(saver, write, step)

    run = make_run(tmp_path / "run", max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(Saver, "save_result", save_on_full_disk)
        error = error_of(run)
    fill_disk(False)
    assert status_of(run)["cause"] == "disk_full"
    assert error == (
        "The result could not be written: No space left on device. The checkpoint of step 2 is "
        "good. Make room, then resume the run."
    )
    assert not list(run.glob("*output*"))
    assert train(run) == FINISHED
    assert (run / "output" / "manifest.json").exists()


@training
def test_a_run_that_cannot_fit_on_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=FREE_BYTES))
    run = make_run(tmp_path / "run", method="full")
    assert "but only 3.0 MiB is free" in error_of(run)
    status = status_of(run)
    assert status["cause"] == "disk_full"
    assert status["free_bytes"] == FREE_BYTES
    assert status["needed_bytes"] > FREE_BYTES
    assert status["step"] == 0


# Many crashes

NURSERY = """
import os, sys
from pathlib import Path
from core.training.record import progress
from core.training.trainers import builders
from core.training.__main__ import main

for line in sys.stdin:
    if (pid := os.fork()) == 0:
        log = os.open("log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        os._exit(main(["job.json"], Path.cwd()))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Program that starts one attempt of a run for every line it reads, and imports libraries once."""
NUM_KILLS = 30
KILLED_WHILE_STARTING = 5
"""Every so many attempts are killed while they start, the others after a step."""


def wait_for_a_step(run: Path, pid: int) -> None:
    """Wait until an attempt has taken a step."""
    while True:
        status = status_of(run)
        if status["pid"] == pid and status["last_step_time"] is not None:
            return
        time.sleep(0.01)


@training
def test_a_stage_that_generates_resumes_in_the_rows_of_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, int] = {"max_steps": 7, "per_device_train_batch_size": 8}
    runs = [make_stage_run(tmp_path / name, "grpo", **steps) for name in ("whole", "parts")]
    rows = (runs[0] / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for run in runs:
        write_rows(run, *rows[:ROWS_OF_THREE_STEPS])
    assert train(runs[0]) == FINISHED
    train_in_two_parts(runs[1], 4, monkeypatch)
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), abs=1e-6)


@training
@pytest.mark.slow
def test_a_run_that_was_killed_thirty_times_has_the_same_losses(tmp_path: Path) -> None:
    fields = {"max_steps": 240, "save_steps": 2, "lora_r": 4, "learning_rate": 1e-3}
    whole, killed = make_run(tmp_path / "whole", **fields), make_run(tmp_path / "killed", **fields)
    assert train(whole) == FINISHED
    chance = random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        cwd=killed,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nursery:
        assert nursery.stdin
        assert nursery.stdout
        for attempt in range(NUM_KILLS):
            print("start", file=nursery.stdin, flush=True)
            pid = int(nursery.stdout.readline())
            if attempt % KILLED_WHILE_STARTING:
                wait_for_a_step(killed, pid)
            time.sleep(chance.uniform(0, 0.4))
            os.kill(pid, signal.SIGKILL)
            exit_code = int(nursery.stdout.readline())
            assert exit_code == -signal.SIGKILL, (killed / "log.txt").read_text()
        print("start", file=nursery.stdin, flush=True)
        nursery.stdout.readline()
        assert int(nursery.stdout.readline()) == FINISHED, (killed / "log.txt").read_text()
    # The same steps in the same order, none missing and none twice, with the same losses.
    assert list(losses_of(killed).items()) == list(losses_of(whole).items())
    assert status_of(killed)["resumed_at"]
    assert not status_of(killed)["skipped_checkpoints"]
