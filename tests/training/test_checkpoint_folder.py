"""Folder of checkpoints by itself: written, verified, rotated."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.training.checkpoints import CheckpointFolder

MAX_STEPS = 20
NUM_CRASHES = 30
"""More than the system calls of one save."""


def add(checkpoints: CheckpointFolder, step: int, text: str = "weights") -> None:
    """Write a small checkpoint as a trainer does."""
    with checkpoints.adding(step, MAX_STEPS, facts={"seed": 1}) as folder:
        checkpoint = folder / f"checkpoint-{step}"
        (checkpoint / "ref").mkdir(parents=True)
        (checkpoint / "model.safetensors").write_text(f"{text} of step {step}")
        (checkpoint / "ref" / "optimizer.pt").write_text("states")


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def newest_step(folder: Path) -> int | None:
    """Return the newest good step, as a new process finds it."""
    checkpoint, _ = CheckpointFolder(folder).newest()
    return checkpoint.step if checkpoint else None


# Writing


def test_a_checkpoint_appears_when_it_is_complete(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path).adding(3, MAX_STEPS, facts={}) as folder:
        (folder / "checkpoint-3").mkdir()
        assert steps_in(tmp_path) == []
    assert newest_step(tmp_path) == 3


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    adding = CheckpointFolder(tmp_path).adding(3, MAX_STEPS, facts={})
    with pytest.raises(OSError), adding as folder:
        (folder / "checkpoint-3").mkdir()
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


class Crash(BaseException):
    """End of the process."""


def crash_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Crash at one of the next system calls and at all later ones, also while cleaning up."""
    num_calls = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls > moment:
                raise Crash
            return call(*args, **kwargs)

        return attempt

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))


def test_a_crash_at_any_moment_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = []
    for moment in range(NUM_CRASHES):
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
        newest.append(newest_step(folder))
    assert set(newest) == {1, 2}
    assert newest == sorted(newest, key=lambda step: step or 0), "a later crash loses nothing more"


def test_leftovers_of_a_crash_are_removed_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-7.new" / "checkpoint-7").mkdir(parents=True)
    add(CheckpointFolder(tmp_path), 8)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


# Verifying


def flip_a_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


def shorten(folder: Path) -> None:
    (folder / "model.safetensors").write_text("torn")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_subfolder(folder: Path) -> None:
    shutil.rmtree(folder / "ref")


def add_a_file(folder: Path) -> None:
    (folder / "pytorch_model.bin").touch()


def replace_by_link(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def tear_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {')


def change_step(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"step": 5}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "model.safetensors is not as it was written": flip_a_bit,
    "model.safetensors has 4 bytes instead of": shorten,
    "model.safetensors is missing": remove_weights,
    "ref/optimizer.pt is missing": remove_subfolder,
    "pytorch_model.bin is not in its manifest": add_a_file,
    "model.safetensors is not a plain file": replace_by_link,
    "it has no manifest": remove_manifest,
    "its manifest cannot be read": tear_manifest,
    "its manifest is of step 5": change_step,
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason(tmp_path: Path, reason: str) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 1)
    add(checkpoints, 2)
    DAMAGES[reason](tmp_path / "checkpoint-2")
    checkpoint, skipped = CheckpointFolder(tmp_path).newest()
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert [sentence.partition(reason)[0] for sentence in skipped] == ["checkpoint-2: "]


def test_damage_while_the_run_trains_is_noticed(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 1)
    assert checkpoints.newest()[0] is not None
    flip_a_bit(tmp_path / "checkpoint-1")
    assert checkpoints.newest()[0] is None


# Rotating


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    for step in (2, 4, 10, 12):
        add(checkpoints, step)
        checkpoints.keep_newest(2)
    assert steps_in(tmp_path) == [10, 12]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        add(checkpoints, step)
    flip_a_bit(tmp_path / "checkpoint-2")
    checkpoints.keep_newest(2)
    assert steps_in(tmp_path) == [1, 2, 3]
    flip_a_bit(tmp_path / "checkpoint-3")
    CheckpointFolder(tmp_path).keep_newest(1)
    assert newest_step(tmp_path) == 1


def test_a_new_checkpoint_replaces_a_damaged_one_of_its_step(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 4)
    flip_a_bit(tmp_path / "checkpoint-4")
    add(checkpoints, 4, "new weights")
    assert newest_step(tmp_path) == 4
    text = (tmp_path / "checkpoint-4" / "model.safetensors").read_text()
    assert text == "new weights of step 4"


def test_a_checkpoint_that_another_rank_cannot_read_is_skipped(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    add(checkpoints, 1)
    add(checkpoints, 2)
    answers = iter([True, False])
    checkpoint, skipped = checkpoints.newest(any_rank=lambda _is_damaged: next(answers))
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert skipped == ("checkpoint-2: another process cannot read it",)


def test_every_rank_looks_at_what_the_first_one_lists(tmp_path: Path) -> None:
    add(CheckpointFolder(tmp_path), 1)
    listed = ["checkpoint-2", "checkpoint-1"]  # the first rank sees one more
    checkpoint, skipped = CheckpointFolder(tmp_path).newest(from_first=lambda _own: listed)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert skipped[0].startswith("checkpoint-2: ")
