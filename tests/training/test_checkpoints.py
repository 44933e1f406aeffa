"""CheckpointFolder that cannot be lost, and resuming from them: the folder by itself, then real trainings."""

import errno
import json
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

from core.training.checkpoints import CheckpointFolder, VerifiedCheckpoint
from core.training.checkpoints.identity import MAY_CHANGE, allowed_changes, keep_smaller_batch
from core.training.contract.failures import Failure, TrainingError
from core.training.contract.status import Progress
from core.training.record import RunFiles
from core.training.record.journal import Journal
from tests.builders.paths import ROOT
from tests.builders.training_runs import (
    job_of,
    lines_of,
    losses_of,
    make_run,
    status_of,
    train,
    train_again,
)

training = pytest.mark.training


def add(checkpoints: CheckpointFolder, step: int, text: str = "weights") -> None:
    """Writes a small checkpoint as a trainer would."""
    with checkpoints.adding(step, max_steps=20, facts={"seed": 1}) as folder:
        (made := folder / f"checkpoint-{step}").mkdir()
        (made / "model.safetensors").write_text(f"{text} of step {step}")
        (made / "ref").mkdir()
        (made / "ref" / "optimizer.pt").write_text("states")


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def newest_step(folder: Path) -> int | None:
    """As a new process finds it."""
    checkpoint, _ = CheckpointFolder(folder).newest()
    return checkpoint.step if checkpoint else None


# Written


def test_a_checkpoint_is_not_there_before_it_is_complete(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    with checkpoints.adding(3, max_steps=20, facts={}) as folder:
        (folder / "checkpoint-3").mkdir()
        assert newest_step(tmp_path) is None and steps_of(tmp_path) == []
    assert newest_step(tmp_path) == 3


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError),
        CheckpointFolder(tmp_path).adding(3, max_steps=20, facts={}) as folder,
    ):
        (folder / "checkpoint-3").mkdir()
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


class Crash(BaseException):
    """The process ends here."""


def crash_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the process end at one of its system calls; what is called later, as when cleaning up, has no effect."""
    calls = iter(range(1000))

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            if next(calls) >= moment:
                raise Crash
            return call(*args, **kwargs)

        return attempt

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


def test_a_crash_at_any_moment_of_a_save_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivors = []
    for moment in range(30):
        folder = tmp_path / str(moment)
        checkpoints = CheckpointFolder(folder)
        add(checkpoints, 1)
        with monkeypatch.context() as patched:
            crash_at(moment, patched)
            try:
                add(checkpoints, 2)
                checkpoints.keep_newest(1)
            except Crash:
                pass
        survivors.append(newest_step(folder))
    assert survivors == sorted(survivors, key=lambda step: step or 0) and set(survivors) == {1, 2}


def test_what_a_crash_left_behind_is_removed_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-7.new" / "checkpoint-7").mkdir(parents=True)
    add(CheckpointFolder(tmp_path), 8)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


# Verified


def flip_a_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


def put_a_link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def rename_step(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"step": 5}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "model.safetensors is not as it was written": flip_a_bit,
    "model.safetensors has 4 bytes instead of": lambda folder: (
        folder / "model.safetensors"
    ).write_text("torn"),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "ref/optimizer.pt is missing": lambda folder: shutil.rmtree(folder / "ref"),
    "pytorch_model.bin is not in its manifest": lambda folder: (
        folder / "pytorch_model.bin"
    ).touch(),
    "model.safetensors is not a plain file": put_a_link,
    "it has no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "its manifest cannot be read": lambda folder: (folder / "manifest.json").write_text(
        '{"files": {'
    ),
    "its manifest is of step 5": rename_step,
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason(tmp_path: Path, reason: str) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 1)
    add(checkpoints, 2)
    DAMAGES[reason](tmp_path / "checkpoint-2")
    checkpoint, skipped = CheckpointFolder(tmp_path).newest()
    assert checkpoint is not None and checkpoint.step == 1
    assert len(skipped) == 1 and skipped[0].startswith(f"checkpoint-2: {reason}")


def test_damage_done_while_the_run_trains_is_noticed(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 1)
    assert checkpoints.newest()[0] is not None
    flip_a_bit(tmp_path / "checkpoint-1")
    assert checkpoints.newest()[0] is None


# Rotated


def test_only_the_newest_good_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    for step in (2, 4, 10, 12):
        add(checkpoints, step)
        checkpoints.keep_newest(2)
    assert steps_of(tmp_path) == [10, 12]


def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        add(checkpoints, step)
    flip_a_bit(tmp_path / "checkpoint-2")
    checkpoints.keep_newest(2)
    assert steps_of(tmp_path) == [1, 2, 3]
    flip_a_bit(tmp_path / "checkpoint-3")
    CheckpointFolder(tmp_path).keep_newest(1)
    assert newest_step(tmp_path) == 1


def test_a_damaged_checkpoint_gives_way_to_a_new_one_of_its_step(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 4)
    flip_a_bit(tmp_path / "checkpoint-4")
    add(checkpoints, 4, "new weights")
    assert newest_step(tmp_path) == 4
    assert (tmp_path / "checkpoint-4" / "model.safetensors").read_text() == "new weights of step 4"


# The job that continues it

FACTS = {
    "lora_r": 16,
    "model": "a/b",
    "seed": 1,
    "data_sha256": {"data/train.jsonl": "0" * 64},
    "logging_steps": 1,
}


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
def test_what_must_stay_the_same_is_named_with_both_values(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(TrainingError, match="cannot be resumed from checkpoint-6") as raised:
        allowed_changes(VerifiedCheckpoint(Path("checkpoint-6"), 6, 9, FACTS), FACTS | changes)
    assert words in str(raised.value) and raised.value.failure.cause == "checkpoint_mismatch"


def test_what_may_change_is_said(tmp_path: Path) -> None:
    notes = allowed_changes(
        VerifiedCheckpoint(Path("checkpoint-6"), 6, 9, FACTS),
        FACTS | {"logging_steps": 5, "new_field": 1},
    )
    assert notes == ("From step 6 on logging_steps is 5; it was 1.",)


def test_every_fact_that_may_change_is_a_field_or_the_versions() -> None:
    from core.job import JobSpec

    assert MAY_CHANGE - {"versions"} <= set(JobSpec.model_fields)


@pytest.mark.parametrize(
    ("rows", "passes", "kept"), [(2, 4, (2, 4)), (8, 1, (4, 2)), (2, 8, (4, 2))]
)
def test_a_batch_that_had_to_be_cut_stays_cut(
    rows: int, passes: int, kept: tuple[int, int]
) -> None:
    job = job_of(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    facts = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes}
    job = keep_smaller_batch(job, VerifiedCheckpoint(Path("checkpoint-6"), 6, 9, facts))
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == kept


# A disk that is full


@pytest.fixture
def full_disk() -> Iterator[Callable[[int | None], None]]:
    """Forbids this process to write files beyond a size, in bytes; None allows it again."""
    _, highest = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (highest if size is None else size, highest))

    yield limit
    limit(None)


def test_lines_that_the_disk_has_no_room_for_are_written_later(
    tmp_path: Path, full_disk: Callable[[int | None], None]
) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1})
    full_disk(20)
    journal.append({"step": 2, "loss": 0.123456})
    journal.append({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    full_disk(None)
    journal.append({"step": 4})
    assert [row["step"] for row in journal.rows()] == [1, 2, 3, 4]


def test_a_status_that_cannot_be_written_ends_nothing(
    tmp_path: Path, full_disk: Callable[[int | None], None]
) -> None:
    record = RunFiles(tmp_path)
    full_disk(10)
    record.update(phase="load")
    full_disk(None)
    record.update(phase="train")
    assert status_of(tmp_path)["phase"] == "train"


def test_what_must_be_said_on_a_full_disk_has_room_that_was_kept_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunFiles(tmp_path)
    spare = tmp_path / ".spare"

    def write(path: Path, value: dict[str, object]) -> None:
        if spare.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_text(json.dumps(value))

    monkeypatch.setattr("core.training.record.run_files.write_json", write)
    monkeypatch.setattr("core.training.record.run_files.SECONDS_BETWEEN_UPDATES", 0)
    record.update(progress=Progress("tokenising", 1, 2, ""))
    assert status_of(tmp_path)["progress"] is None, "what changes all the time is not worth it"
    record.fail(Failure("disk_full", "The disk is full."))
    assert status_of(tmp_path)["cause"] == "disk_full" and spare.stat().st_size == 65_536
    record.close()
    assert not spare.exists()


def during(
    steps: range,
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[], None],
    end: Callable[[], None],
) -> None:
    """Calls `begin` once the first of the steps has been logged, and `end` once the last has."""
    append = RunFiles.append_metrics

    def append_and_call(record: RunFiles, step: int, *args: Any) -> None:
        append(record, step, *args)
        if step == steps[0]:
            begin()
        if step == steps[-1]:
            end()

    monkeypatch.setattr(RunFiles, "append_metrics", append_and_call)


@training
def test_a_checkpoint_for_which_the_disk_is_too_full_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[int | None], None]
) -> None:
    run = make_run(tmp_path / "run", save_steps=2)
    during(range(3, 6), monkeypatch, lambda: full_disk(20_000), lambda: full_disk(None))
    assert train(run) == 0
    status = status_of(run)
    assert steps_of(run / "checkpoints") == [2, 6] and status["checkpoint_step"] == 6
    assert (
        len(status["notes"]) == 1
        and "checkpoint of step 4 was not written: No space left" in status["notes"][0]
    )
    assert status["warning"] is None and len(losses_of(run)) == 6


@training
def test_a_result_that_cannot_be_written_is_written_when_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[int | None], None]
) -> None:
    from core.training.loop.saver import Saver

    save_result = Saver.save_result

    def save_on_full_disk(saver: Saver, write: Callable[[Path], None]) -> None:
        full_disk(20_000)
        save_result(saver, write)

    run = make_run(tmp_path / "run", max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(Saver, "save_result", save_on_full_disk)
        assert train(run) == 1
    full_disk(None)
    status = status_of(run)
    assert status["cause"] == "disk_full" and status["error"] == (
        "The result could not be written: No space left on device. The checkpoint of step 2 is good. "
        "Make room, then resume the run."
    )
    assert not (run / "output").exists() and not (run / ".output.new").exists()
    assert train(run) == 0 and (run / "output" / "manifest.json").exists()


@training
def test_a_run_for_which_the_disk_is_too_small_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    run = make_run(tmp_path / "run", method="full")
    assert train(run) == 1
    status = status_of(run)
    assert (
        status["cause"] == "disk_full"
        and status["free_bytes"] == 3 * 2**20 < status["needed_bytes"]
    )
    assert "but only 3.0 MiB is free" in status["error"] and status["step"] == 0


# Resumed


class Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@training
def test_nothing_is_opened_that_is_not_as_it_was_written(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", save_steps=2)
    run = make_run(tmp_path / "run", save_steps=2)
    assert (train(whole), train(run)) == (0, 0)
    for name in ("optimizer.pt", "rng_state.pth"):
        (run / "checkpoints" / "checkpoint-6" / name).write_bytes(
            pickle.dumps(Poison(tmp_path / "canary"))
        )
    assert train_again(run) == 0
    status = status_of(run)
    assert not (tmp_path / "canary").exists() and status["resumed_at"] == [4]
    assert "checkpoint-6: optimizer.pt has" in status["skipped_checkpoints"][0]
    assert losses_of(run) == losses_of(whole) and steps_of(run / "checkpoints") == [4, 6]


@training
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora_r": 8}, "lora_r was 16, now it is 8"),
        ({"gradient_accumulation_steps": 2}, "effective_batch_size was 4"),
    ],
)
def test_a_job_that_no_longer_fits_its_checkpoint_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    run = make_run(tmp_path / "run", max_steps=2)
    assert train(run) == 0
    job = json.loads((run / "job.json").read_text())
    (run / "job.json").write_text(json.dumps(job | change))
    assert train_again(run) == 1
    assert words in status_of(run)["error"] and status_of(run)["cause"] == "checkpoint_mismatch"


@training
def test_rows_that_have_changed_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=2)
    assert train(run) == 0
    rows = (run / "data" / "train.jsonl").read_text()
    (run / "data" / "train.jsonl").write_text(rows.rstrip("\n"))
    assert train_again(run) == 1
    assert "data_sha256 of data/train.jsonl was" in status_of(run)["error"]


@training
def test_a_resumed_run_shows_where_it_was_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", save_steps=3)
    for step in (1, 3):
        with monkeypatch.context() as patched:
            during(range(step, step + 1), patched, (run / "stop").touch, lambda: None)
            assert train(run) == 130
        (run / "stop").unlink()
    assert train(run) == 0
    seams = {line["step"]: line["resumed_from"] for line in lines_of(run) if "resumed_from" in line}
    assert seams == {3: 2, 5: 4} and status_of(run)["resumed_at"] == [2, 4]


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
"""Starts one life of a run for every line that it reads, without importing the libraries anew."""


@training
@pytest.mark.slow
def test_a_run_that_is_killed_thirty_times_ends_as_one_that_was_not(tmp_path: Path) -> None:
    fields: dict[str, object] = {
        "max_steps": 240,
        "save_steps": 2,
        "lora_r": 4,
        "learning_rate": 1e-3,
    }
    whole, killed = make_run(tmp_path / "whole", **fields), make_run(tmp_path / "killed", **fields)
    assert train(whole) == 0
    chance = random.Random(0)
    command = [sys.executable, "-c", NURSERY]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=killed,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nursery:
        assert nursery.stdin and nursery.stdout
        for life in range(30):
            print("live", file=nursery.stdin, flush=True)
            pid = int(nursery.stdout.readline())
            if life % 5:  # the others are killed while they start
                wait_for_a_step(killed, pid)
            time.sleep(chance.uniform(0, 0.4))
            os.kill(pid, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == -signal.SIGKILL, (
                killed / "log.txt"
            ).read_text()
        print("live", file=nursery.stdin, flush=True)
        nursery.stdout.readline()
        assert int(nursery.stdout.readline()) == 0, (killed / "log.txt").read_text()
    assert list(losses_of(killed).items()) == list(
        losses_of(whole).items()
    )  # no gap, no step twice, the same numbers
    assert status_of(killed)["resumed_at"] and not status_of(killed)["skipped_checkpoints"]


def wait_for_a_step(run: Path, pid: int) -> None:
    """Until this life of a run has taken one."""
    while (status := status_of(run))["pid"] != pid or status["last_step_time"] is None:
        time.sleep(0.01)
