"""New dataset files, which appear under their names whole or not at all. Reads nothing."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Written:
    """New file, and how it differs from the one that it was made of."""

    path: Path
    rows: int
    actions: tuple[str, ...]
    """Sentences that say what was done; none if nothing differs."""


@contextmanager
def writing(target: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is complete. Raises FileExistsError, OSError."""
    if target.exists():
        raise FileExistsError(17, "already exists", str(target))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
