"""The checkpoints of a run as its folder holds them. Reads sizes and names; never opens a tensor."""

import re
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"checkpoint-(\d{1,9})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run."""

    step: int
    bytes: int
    is_complete: bool
    """True if all of it was written; an incomplete one is never resumed from."""


def checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints in a run's folder, the oldest first.

    A manifest, written last, says that one is complete. Where none has a manifest, as in runs of a program that wrote
    none, trainer_state.json says it.
    """
    found = [
        path for path in (folder / "checkpoints").glob("checkpoint-*") if NAME.fullmatch(path.name)
    ]
    has_manifests = any((path / "manifest.json").is_file() for path in found)
    last_file = "manifest.json" if has_manifests else "trainer_state.json"
    listed = (
        Checkpoint(int(path.name[11:]), _bytes_in(path), (path / last_file).is_file())
        for path in found
    )
    return tuple(sorted(listed, key=lambda checkpoint: checkpoint.step))


def has_checkpoint(folder: Path) -> bool:
    """True if there is something to resume from."""
    places = (folder / "checkpoints").glob("checkpoint-*/*.json")
    return any(path.name in ("manifest.json", "trainer_state.json") for path in places)


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
