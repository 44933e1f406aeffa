"""Replace files atomically and hash them. Knows nothing of what they hold."""

import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

WINDOWS_RETRIES = 20
SECONDS_BETWEEN_RETRIES = 0.02


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace a JSON file atomically. Raises OSError."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file by UTF-8 text atomically, as `write_content` does. Raises OSError."""
    write_content(path, text.replace("\n", os.linesep).encode())


def write_content(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader sees the old content or the new, also after a power cut.

    If it fails, the old file stays and nothing else is left behind. Raises OSError.
    """
    # Several threads and processes may write the same file: each needs another temporary name.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(source: Path, target: Path) -> None:
    """Rename a file over another. Windows refuses while a reader has the target open, so retry."""
    for _ in range(WINDOWS_RETRIES if sys.platform == "win32" else 0):
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(SECONDS_BETWEEN_RETRIES)
    source.replace(target)
