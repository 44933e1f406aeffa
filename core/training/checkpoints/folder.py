"""The folder of checkpoints: written beside, sealed with a manifest, renamed; verified before anything in them is read.

Knows nothing of models or of torch.

    checkpoints/checkpoint-12/             complete: its manifest.json was written last
                .checkpoint-12.new/        being written, or left behind by a crash: nobody's checkpoint
                .checkpoint-9.old/         being removed

A manifest holds `files` (name -> bytes, sha256), `step`, `max_steps` and `facts` (what the training was).
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract.checkpoint_files import (
    MANIFEST,
    bytes_in,
    checkpoint_name,
    list_checkpoints,
    read_manifest,
)
from ..contract.files import sha256_of, write_json


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """Complete checkpoint whose files are as they were written."""

    folder: Path
    step: int
    max_steps: int
    facts: Mapping[str, Any]
    """What the training was, as identity.facts_of tells it."""

    @property
    def has_all_steps(self) -> bool:
        """True if only the result is missing."""
        return self.step >= self.max_steps


@dataclass
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    _known: dict[Path, tuple[object, ...]] = field(default_factory=dict)
    """Checkpoint -> how its files looked when they were last verified, so that none is read twice for nothing."""

    def newest(self) -> tuple[VerifiedCheckpoint | None, tuple[str, ...]]:
        """The newest good checkpoint, and what is wrong with each newer one."""
        skipped: list[str] = []
        for folder in self._newest_first():
            if not (reason := self._damage(folder)):
                return _read(folder), tuple(skipped)
            skipped.append(f"{folder.name}: {reason}")
        return None, tuple(skipped)

    @contextmanager
    def adding(self, step: int, max_steps: int, facts: Mapping[str, Any]) -> Iterator[Path]:
        """Yields a folder in which a `checkpoint-<step>` is to be made; afterwards it is sealed and in its place.

        Raises OSError. Whatever is raised, inside or here, nothing of it is left.
        """
        self._sweep()
        building = self.folder / f".checkpoint-{step}.new"
        try:
            building.mkdir(parents=True)
            yield building
            seal(
                building / f"checkpoint-{step}",
                {"step": step, "max_steps": max_steps, "facts": facts},
            )
            target = self.folder / f"checkpoint-{step}"
            publish(building / target.name, target)
            self._known[target] = _look(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def keep_newest(self, limit: int) -> None:
        """Removes what is older than the newest `limit` good ones. A damaged one counts for nothing."""
        good = 0
        for folder in self._newest_first():
            if good >= limit:
                with suppress(OSError):  # what cannot be removed costs room, not the run
                    _erase(_bury(folder))
            elif not self._damage(folder):
                good += 1

    def size_bytes(self) -> int:
        """What all of them take on the disk."""
        return bytes_in(self.folder)

    def _newest_first(self) -> list[Path]:
        return [checkpoint.folder for checkpoint in reversed(list_checkpoints(self.folder))]

    def _damage(self, folder: Path) -> str:
        if self._known.get(folder) == _look(folder):
            return ""
        reason = damage(folder) or _mislabelled(folder)
        if not reason:
            self._known[folder] = _look(folder)
        return reason

    def _sweep(self) -> None:
        """Removes what a crash has left behind."""
        for path in self.folder.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Brings every file of a folder to the disk, then writes the manifest that makes the folder complete.

    The hashes are of what can be read back. Raises OSError.
    """
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _synced_sha256(path)}
        for name, path in _files(folder)
    }
    write_json(folder / MANIFEST, {**facts, "files": files})
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync_folder(each)


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder, in a few words; empty if every file is as it was written."""
    if folder.is_symlink():
        return "it is a link"
    try:
        expected = read_manifest(folder)["files"]
        found = dict(_files(folder))
        if strangers := sorted(found.keys() - expected.keys()):
            return f"{strangers[0]} is not in its manifest"
        for name, entry in expected.items():
            if reason := _file_damage(found.get(name), int(entry["bytes"]), entry["sha256"]):
                return f"{name} {reason}"
    except FileNotFoundError:
        return "it has no manifest, so it was never completed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return ""


def publish(source: Path, target: Path) -> None:
    """Gives a complete folder its name; what had that name before is removed afterwards. Raises OSError."""
    grave = _bury(target) if target.exists() or target.is_symlink() else None
    source.rename(target)
    _sync_folder(target.parent)
    if grave:
        _erase(grave)


def _read(folder: Path) -> VerifiedCheckpoint:
    manifest = read_manifest(folder)
    step, max_steps = int(manifest["step"]), int(manifest["max_steps"])
    return VerifiedCheckpoint(folder, step, max_steps, manifest["facts"])


def _mislabelled(folder: Path) -> str:
    manifest = read_manifest(folder)
    if folder.name != checkpoint_name(manifest.get("step", -1)):
        return f"its manifest is of step {manifest.get('step')}"
    if not isinstance(manifest.get("max_steps"), int) or not isinstance(
        manifest.get("facts"), dict
    ):
        return "its manifest does not tell what the training was"
    return ""


def _file_damage(path: Path | None, num_bytes: int, sha256: str) -> str:
    if path is None:
        return "is missing"
    if path.is_symlink() or not path.is_file():
        return "is not a plain file"
    if path.stat().st_size != num_bytes:
        return f"has {path.stat().st_size:,} bytes instead of {num_bytes:,}"
    return "" if sha256_of(path) == sha256 else "is not as it was written"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of everything in a folder but its manifest; a link is a file here, wherever it leads."""
    for path in sorted(folder.rglob("*")):
        if (path.is_symlink() or not path.is_dir()) and path != folder / MANIFEST:
            yield path.relative_to(folder).as_posix(), path


def _look(folder: Path) -> tuple[object, ...]:
    """Changes whenever a file of the folder is written to."""
    stats = ((path.name, path.lstat()) for path in sorted(folder.rglob("*")))
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def _bury(folder: Path) -> Path:
    """Takes a folder's name at once, however long its removal will take."""
    grave = folder.with_name(f".{folder.name}.old")
    _erase(grave)
    return folder.rename(grave)


def _erase(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _synced_sha256(path: Path) -> str:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return sha256_of(path)


def _sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk; Windows does so by itself."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
