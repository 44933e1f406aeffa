"""Test files, process identities and checkpoint names that training and the rest of core share."""

import errno
import os
from pathlib import Path

import pytest

from core.training.contract.checkpoint_files import list_checkpoints, read_manifest
from core.training.contract.files import sha256_of, write_content, write_json, write_text
from core.training.contract.process_id import ProcessId, is_same_boot, read_boot_id
from core.training.contract.status import ACTIVE, ENDED, TRANSITIONS

BOOT_TIME = 1_764_400_012.25
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    write_json(path, {"new": True})
    assert path.read_text() == '{\n  "new": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_kept_exactly(tmp_path: Path) -> None:
    write_content(tmp_path / "a", b"\xff\r\n")
    assert (tmp_path / "a").read_bytes() == b"\xff\r\n"


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == SHA256_OF_ABC


def test_linux_names_each_boot(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("0a1b-2c3d\n")
    assert read_boot_id(lambda: BOOT_TIME, tmp_path / "boot_id") == "0a1b-2c3d"


def test_elsewhere_the_boot_time_names_the_boot(tmp_path: Path) -> None:
    assert read_boot_id(lambda: BOOT_TIME, tmp_path / "absent") == str(BOOT_TIME)


@pytest.mark.parametrize("later", [0, 1, 60])
def test_a_boot_time_that_moves_by_seconds_is_the_same_boot(tmp_path: Path, later: int) -> None:
    one, other = (
        read_boot_id(lambda moved=moved: BOOT_TIME + moved, tmp_path / "absent")
        for moved in (0, later)
    )
    assert is_same_boot(one, other)


@pytest.mark.parametrize(
    ("one", "other"), [("0a1b", "2c3d"), (str(BOOT_TIME), str(BOOT_TIME + 300)), ("0a1b", "17.5")]
)
def test_other_boots_are_told_apart(one: str, other: str) -> None:
    assert not is_same_boot(one, other)


def test_a_process_is_read_back_as_it_was_written() -> None:
    process = ProcessId(4711, 12.5, "0a1b")
    assert ProcessId.from_json(process.to_json()) == process


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pid": "7", "pid_start_time": 1.0, "boot_id": "a"},
        {"pid": 7, "pid_start_time": None, "boot_id": "a"},
        {"pid": 7, "pid_start_time": 10**400, "boot_id": "a"},
        {"pid": 7, "pid_start_time": 1.0},
        {"pid": 1, "pid_start_time": 1.0, "boot_id": "a"},
    ],
)
def test_damaged_fields_name_no_process(fields: dict[str, object]) -> None:
    assert ProcessId.from_json(fields) is None


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", ".checkpoint-11.new"):
        (tmp_path / name).mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [9, 10]


def test_a_manifest_that_is_no_object_is_damage(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError):
        read_manifest(tmp_path)


def test_every_state_is_active_or_ended() -> None:
    assert set(TRANSITIONS) == ACTIVE | ENDED
    assert not ACTIVE & ENDED
