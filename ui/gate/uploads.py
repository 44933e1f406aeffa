"""Uploads that the app stores: refused on a full disk, removed if half-sent or unused.

Knows only the folder. A file right in it is still arriving; one that arrived has a folder there.
"""

import asyncio
import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

RESERVED_BYTES: Final = 512 * 2**20
"""Disk that uploads leave to the runs."""
UNUSED_SECONDS: Final = 3600
FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)


class Uploads:
    """Folder in which the app stores uploads; None if it is not known."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.num_arriving = 0

    def problem(self, num_bytes: int) -> str:
        """Return why an upload of this size is refused, "" if it is not."""
        if self.folder is None:
            return ""
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:  # the folder is made with the first upload
            free = shutil.disk_usage(self.folder.parent).free
        if free - num_bytes >= RESERVED_BYTES:
            return ""
        gib = free / 2**30
        return f"The disk is nearly full: {gib:.1f} GiB are free. Delete runs or other files first."

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Remove what is left of an upload that ended early, once no other is arriving."""
        self.num_arriving += 1
        try:
            yield
        finally:
            self.num_arriving -= 1
            if self.folder is not None:
                self._remove_half_sent(self.folder)
                loop = asyncio.get_running_loop()
                loop.call_later(UNUSED_SECONDS + 1, remove_older, self.folder, UNUSED_SECONDS)

    def _remove_half_sent(self, folder: Path) -> None:
        if self.num_arriving:
            return
        for path in _entries(folder):
            if not path.is_dir():
                with suppress(OSError):
                    path.unlink()


def remove_older(folder: Path, seconds: float) -> None:
    """Remove everything in a folder that has not changed for so long."""
    for path in _entries(folder):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime <= seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def is_full_disk(error: Exception) -> bool:
    """Return whether the app failed for want of disk."""
    return isinstance(error, OSError) and error.errno in FULL_DISK


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
