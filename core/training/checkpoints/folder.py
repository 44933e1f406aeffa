"""Folder of checkpoints: each is built under a hidden name, sealed with a manifest and renamed;
nothing in one is opened before it is verified.

Knows nothing of models or of torch.

    checkpoints/checkpoint-12/             complete: its manifest.json was written last
                .checkpoint-12.new/        being written, or left behind by a crash
                .checkpoint-9.old/         being removed

A manifest holds `files` (name -> bytes, sha256), `step`, `max_steps` and `facts`
(identity.facts_of).
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
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

Fingerprint = tuple[object, ...]


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """Complete checkpoint whose files are as they were written."""

    folder: Path
    step: int
    max_steps: int
    facts: Mapping[str, Any]
    """What the training was, from identity.facts_of."""

    @property
    def has_all_steps(self) -> bool:
        """True if only the result of the run is missing."""
        return self.step >= self.max_steps


@dataclass
class CheckpointFolder:
    """Checkpoints of one run."""

    folder: Path
    _verified: dict[Path, Fingerprint] = field(default_factory=dict)
    """Checkpoint -> fingerprint when it was last verified, so that no file is hashed twice."""

    def newest(
        self,
        from_first: Callable[[list[str]], list[str]] = list,
        any_rank: Callable[[bool], bool] = bool,
    ) -> tuple[VerifiedCheckpoint | None, tuple[str, ...]]:
        """Return (newest checkpoint that is good for every rank, damage of each newer one).

        Of several ranks all call it, and each verifies what rank 0 lists: `from_first` and
        `any_rank` are those of ranks.agreement.
        """
        skipped: list[str] = []
        for name in from_first([folder.name for folder in self._newest_first()]):
            folder = self.folder / name
            try:
                reason = self._damage(folder)
            except OSError as error:
                reason = f"it cannot be read: {error.strerror or error}"
            if not any_rank(bool(reason)):
                return _read(folder), tuple(skipped)
            skipped.append(f"{name}: {reason or 'another process cannot read it'}")
        return None, tuple(skipped)

    @contextmanager
    def adding(self, step: int, max_steps: int, facts: Mapping[str, Any]) -> Iterator[Path]:
        """Yield a folder in which to make `checkpoint-<step>`; then seal it and move it to its
        place.

        Raises OSError. After any exception, inside the block or here, nothing of the checkpoint is
        left.
        """
        self._remove_leftovers()
        name = checkpoint_name(step)
        building = self.folder / f".{name}.new"
        try:
            building.mkdir(parents=True)
            yield building
            seal(building / name, {"step": step, "max_steps": max_steps, "facts": facts})
            target = self.folder / name
            publish(building / name, target)
            self._verified[target] = _fingerprint(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def at(self, step: int) -> VerifiedCheckpoint | None:
        """Return the good checkpoint of a step, None if there is none."""
        folder = self.folder / checkpoint_name(step)
        if not folder.is_dir() or self._damage(folder):
            return None
        return _read(folder)

    def keep_newest(self, limit: int, best_step: int | None = None) -> None:
        """Remove all checkpoints older than the newest `limit` good ones, but that of the best
        step. A damaged one does not count."""
        num_good = 0
        best_name = None if best_step is None else checkpoint_name(best_step)
        for folder in self._newest_first():
            if num_good >= limit and folder.name != best_name:
                with suppress(OSError):  # a checkpoint that cannot be removed only takes room
                    _erase(_hide(folder))
            elif not self._damage(folder):
                num_good += 1

    def size_bytes(self) -> int:
        """Return the size of all checkpoints on the disk."""
        return bytes_in(self.folder)

    def _newest_first(self) -> list[Path]:
        return [checkpoint.folder for checkpoint in reversed(list_checkpoints(self.folder))]

    def _damage(self, folder: Path) -> str:
        fingerprint = _fingerprint(folder)
        if self._verified.get(folder) == fingerprint:
            return ""
        reason = damage(folder) or _manifest_fault(folder)
        if not reason:
            self._verified[folder] = fingerprint
        return reason

    def _remove_leftovers(self) -> None:
        """Remove what a crash has left behind."""
        for path in self.folder.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Flush every file of a folder to the disk, then write the manifest that makes the folder
    complete.

    The hashes are of what was read back. Raises OSError.
    """
    files = {}
    for name, path in _files(folder):
        _sync_file(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / MANIFEST, {**facts, "files": files})
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync_folder(each)


def damage(folder: Path) -> str:
    """Return what is wrong with a sealed folder in a few words; "" if every file is as it was
    written."""
    if folder.is_symlink():
        return "it is a link"
    try:
        expected = read_manifest(folder)["files"]
        found = dict(_files(folder))
        unexpected = sorted(found.keys() - expected.keys())
        if unexpected:
            return f"{unexpected[0]} is not in its manifest"
        for name, entry in expected.items():
            reason = _file_damage(found.get(name), int(entry["bytes"]), entry["sha256"])
            if reason:
                return f"{name} {reason}"
    except FileNotFoundError:
        return "it has no manifest, so it was never completed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return ""


def publish(source: Path, target: Path) -> None:
    """Rename a complete folder. What had its name before is removed afterwards. Raises OSError."""
    old = _hide(target) if target.exists() or target.is_symlink() else None
    source.rename(target)
    _sync_folder(target.parent)
    if old:
        _erase(old)


def _read(folder: Path) -> VerifiedCheckpoint:
    manifest = read_manifest(folder)
    step = int(manifest["step"])
    return VerifiedCheckpoint(folder, step, int(manifest["max_steps"]), manifest["facts"])


def _manifest_fault(folder: Path) -> str:
    manifest = read_manifest(folder)
    step: Any = manifest.get("step")
    if folder.name != checkpoint_name(step):
        return f"its manifest is of step {step}"
    has_max_steps = isinstance(manifest.get("max_steps"), int)
    if not has_max_steps or not isinstance(manifest.get("facts"), dict):
        return "its manifest does not say what the training was"
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
    """Yield (name, path) of everything in a folder but its manifest. A link counts as a file, even
    to a folder."""
    for path in sorted(folder.rglob("*")):
        is_file = path.is_symlink() or not path.is_dir()
        if is_file and path != folder / MANIFEST:
            yield path.relative_to(folder).as_posix(), path


def _fingerprint(folder: Path) -> Fingerprint:
    """Return a value that changes when a file of the folder is written to."""
    stats = [(path.name, path.lstat()) for path in sorted(folder.rglob("*"))]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def _hide(folder: Path) -> Path:
    """Free the name of a folder at once, however long its removal takes."""
    hidden = folder.with_name(f".{folder.name}.old")
    _erase(hidden)
    return folder.rename(hidden)


def _erase(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk. Windows does so by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
