"""Names and manifests of the folders in checkpoints/. Reads file names and JSON; never opens a
tensor."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Written last into a checkpoint: its presence says that the checkpoint is complete."""
TRAINER_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d{1,9})")


@dataclass(frozen=True)
class Checkpoint:
    """Folder checkpoints/checkpoint-<step>."""

    folder: Path
    step: int
    is_complete: bool
    """True if every file was written; an incomplete checkpoint is never resumed from."""

    @property
    def num_bytes(self) -> int:
        """Size of its files on the disk."""
        return bytes_in(self.folder)


def list_checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """Return the checkpoints in a folder `checkpoints`, oldest first.

    A manifest says that a checkpoint is complete. Early versions wrote no manifests: where no
    checkpoint has one, trainer_state.json says it.
    """
    steps = {path: _step(path) for path in folder.glob("checkpoint-*")}
    found = sorted((step, path) for path, step in steps.items() if step is not None)
    has_manifests = any((path / MANIFEST).is_file() for _step, path in found)
    last_file = MANIFEST if has_manifests else TRAINER_STATE
    return tuple(Checkpoint(path, step, (path / last_file).is_file()) for step, path in found)


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint."""
    return f"checkpoint-{step}"


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Return the manifest of a checkpoint or a result. Raises OSError, ValueError."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError(f"{folder / MANIFEST} holds no object")
    return manifest


def bytes_in(folder: Path) -> int:
    """Return the size of the files below a folder. Follows no links, skips removed files."""
    total = 0
    for inner, _folders, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(inner, name).lstat().st_size
    return total


def _step(folder: Path) -> int | None:
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None
