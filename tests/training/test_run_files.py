"""Files of the run folder: status, metrics and samples, also on a full disk."""

import errno
import json
import math
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.training.contract.failures import Failure
from core.training.contract.status import Progress
from core.training.record import RunFiles
from core.training.record.journal import Journal
from core.training.record.run_files import SPARE_BYTES
from tests.builders.training_runs import lines_of, status_of

LINES = [
    {"step": 2, "time": 50.0, "num_tokens": 9},
    {"step": 2, "time": 51.0, "eval_loss": 1.0},
    {"step": 3, "time": 60.0, "num_tokens": 12},
]


@pytest.fixture
def resumed(tmp_path: Path) -> RunFiles:
    """Run files with metrics of an earlier attempt, whose last line is torn."""
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "ti')
    return RunFiles(tmp_path)


def test_truncating_drops_later_and_torn_lines(resumed: RunFiles) -> None:
    resumed.truncate_after(2, has_all_steps=False)
    assert lines_of(resumed.folder) == LINES[:2]


def test_truncating_returns_the_tokens_up_to_the_step(resumed: RunFiles) -> None:
    assert resumed.truncate_after(2, has_all_steps=False) == LINES[0]["num_tokens"]


def test_truncating_restores_the_elapsed_time(resumed: RunFiles) -> None:
    resumed.truncate_after(2, has_all_steps=False)
    assert resumed.seconds() >= LINES[1]["time"]


def test_the_first_line_after_a_resume_names_the_checkpoint(resumed: RunFiles) -> None:
    resumed.truncate_after(2, has_all_steps=False)
    for step in (3, 4):
        resumed.append_metrics(step, 0.5, {"loss": 1.0})
    marks = [line.get("resumed_from") for line in lines_of(resumed.folder)]
    assert marks == [None, None, 2, None]


def test_an_answer_with_unusual_line_ends_survives_truncating(tmp_path: Path) -> None:
    run_files = RunFiles(tmp_path)
    run_files.append_sample(0, "say it", "a\u2028b\x85c\nd")
    run_files.truncate()
    assert lines_of(tmp_path, "samples.jsonl")[0]["answer"] == "a\u2028b\x85c\nd"


def test_frequent_fields_are_written_with_the_next_important_one(tmp_path: Path) -> None:
    run_files = RunFiles(tmp_path)
    run_files.update(step=1)
    assert status_of(tmp_path)["step"] == 0
    run_files.update(phase="train")
    assert status_of(tmp_path)["step"] == 1


def test_numbers_that_json_lacks_are_named(tmp_path: Path) -> None:
    values = {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.1}
    RunFiles(tmp_path).append_metrics(1, 0.5, values)
    line = lines_of(tmp_path)[0]
    assert line["nonfinite"] == ["loss", "grad_norm"]
    assert set(line) == {"step", "epoch", "time", "learning_rate", "nonfinite"}


def test_two_threads_write_one_status(tmp_path: Path) -> None:
    run_files = RunFiles(tmp_path)

    def warn_often(name: str) -> None:
        for number in range(50):
            run_files.update(warning=f"{name}{number}")

    threads = [threading.Thread(target=warn_often, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert status_of(tmp_path)["warning"] in ("a49", "b49")


# A full disk


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int | None], None]]:
    """Limit the size of files that this process writes, in bytes; None removes the limit."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int | None) -> None:
        soft_limit = hard_limit if num_bytes is None else num_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft_limit, hard_limit))

    yield limit
    limit(None)


def test_lines_that_do_not_fit_on_the_disk_are_written_later(
    tmp_path: Path, limit_file_size: Callable[[int | None], None]
) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1})
    limit_file_size(20)
    journal.append({"step": 2, "loss": 0.123456})
    journal.append({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    limit_file_size(None)
    journal.append({"step": 4})
    assert [row["step"] for row in journal.rows()] == [1, 2, 3, 4]


def test_a_status_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, limit_file_size: Callable[[int | None], None]
) -> None:
    run_files = RunFiles(tmp_path)
    limit_file_size(10)
    run_files.update(phase="load")
    limit_file_size(None)
    run_files.update(phase="train")
    assert status_of(tmp_path)["phase"] == "train"


@pytest.fixture
def on_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """Run files on a disk that has no room but that of the spare file."""
    run_files = RunFiles(tmp_path)
    spare_file = tmp_path / ".spare"

    def write(path: Path, value: dict[str, object]) -> None:
        if spare_file.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_text(json.dumps(value))

    monkeypatch.setattr("core.training.record.run_files.write_json", write)
    monkeypatch.setattr("core.training.record.run_files.SECONDS_BETWEEN_UPDATES", 0)
    return run_files


def test_frequent_fields_leave_the_spare_file_alone(on_full_disk: RunFiles) -> None:
    on_full_disk.update(progress=Progress("tokenizing", 1, 2, ""))
    assert status_of(on_full_disk.folder)["progress"] is None


def test_a_failure_uses_the_room_of_the_spare_file(on_full_disk: RunFiles) -> None:
    on_full_disk.fail(Failure("disk_full", "The disk is full."))
    assert status_of(on_full_disk.folder)["cause"] == "disk_full"


def test_the_spare_file_is_written_again(on_full_disk: RunFiles) -> None:
    on_full_disk.fail(Failure("disk_full", "The disk is full."))
    assert (on_full_disk.folder / ".spare").stat().st_size == SPARE_BYTES


def test_the_spare_file_is_deleted_at_the_end(on_full_disk: RunFiles) -> None:
    on_full_disk.close()
    assert not (on_full_disk.folder / ".spare").exists()
