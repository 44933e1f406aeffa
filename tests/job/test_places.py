"""Test which places jobs may name, and that a disk that hangs is given up."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.job import SpecError
from core.job.places import in_time, is_there, only_in, require_allowed
from core.models import find_model
from core.resolve import dataset_path, resolve

SOON = 0.05
KERNEL_LOG = Path("/proc/kmsg")


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """Return what a hung disk waits for. It comes after the test."""
    answer = threading.Event()
    yield answer
    answer.set()


def test_a_disk_that_hangs_is_given_up(hung: threading.Event, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="its disk does not answer"):
        in_time(hung.wait, tmp_path / "rows.jsonl", SOON)


def test_nothing_more_waits_for_a_disk_that_hangs(hung: threading.Event, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        in_time(hung.wait, tmp_path / "rows.jsonl", SOON)
    begun = time.monotonic()
    assert not is_there(tmp_path / "other.jsonl")
    assert time.monotonic() - begun < 1


def test_a_disk_that_answers_again_is_read_again(hung: threading.Event, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.touch()
    with pytest.raises(TimeoutError):
        in_time(hung.wait, file, SOON)
    hung.set()
    time.sleep(SOON)
    assert is_there(file)


def test_errors_of_a_read_come_back(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        in_time((tmp_path / "none").stat, tmp_path / "none")


@pytest.mark.skipif(not KERNEL_LOG.exists(), reason="only Linux has it")
@pytest.mark.parametrize("place", ["/proc/kmsg", "/sys/kernel/notes", "/dev/zero"])
def test_files_of_the_system_are_no_data(place: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to(place)
    for path in (place, tmp_path / "rows.jsonl"):
        with pytest.raises(SpecError, match="is the system's"):
            require_allowed(Path(path), "dataset")


def test_guests_read_named_folders_only(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
        (folder / "rows.jsonl").write_text('{"text": "words"}\n')
    (mine / "link.jsonl").symlink_to(other / "rows.jsonl")
    with only_in([mine.resolve()]):
        assert dataset_path(str(mine / "rows.jsonl")) == mine / "rows.jsonl"
        for path in (
            other / "rows.jsonl",
            mine / ".." / "other" / "rows.jsonl",
            mine / "link.jsonl",
        ):
            with pytest.raises(SpecError, match="--data"):
                dataset_path(str(path))
    assert dataset_path(str(other / "rows.jsonl")) == other / "rows.jsonl"


@pytest.mark.parametrize("field", ["dataset", "eval_dataset", "mix", "adapter", "model"])
def test_every_field_that_names_a_file_has_the_door(field: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with only_in([]), pytest.raises(SpecError) as raised:
        resolve({"dataset": "", field: str(tmp_path / "config.json")})
    problems = [each for each in raised.value.problems if each.field == field]
    assert "in no folder that this page may read" in problems[0].problem


def test_the_demo_is_open_to_guests() -> None:
    with only_in([]):
        assert dataset_path("demo").is_file()
        assert find_model("demo").is_local
