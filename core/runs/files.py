"""Read files of a run folder: regular files only, never through a link."""

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

# Do not follow links or wait for a pipe; read bytes on Windows too.
FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
    FLAGS |= getattr(os, _name, 0)
MAX_NUMBER = 1e300
"""Larger numbers and NaN are damage: nothing can be computed with them."""


def open_regular(path: Path) -> FileIO:
    """Open a file for reading, unbuffered. Raises OSError for links and special files."""
    descriptor = os.open(path, FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bytes(path: Path, last: int | None = None) -> bytes:
    """Return the content of a file, or its last bytes; b"" if there is no regular file."""
    try:
        with open_regular(path) as file:
            if last is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last))
            return file.read()
    except OSError:
        return b""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or {} if there is none."""
    value = parse_json(read_bytes(path))
    if isinstance(value, dict):
        return value
    return {}


def read_rows(path: Path, last: int | None = None) -> tuple[dict[str, Any], ...]:
    """Return the objects in a JSON Lines file, or in its last bytes, without a torn last line."""
    values = map(parse_json, read_bytes(path, last).split(b"\n")[:-1])
    return tuple(value for value in values if isinstance(value, dict))


def parse_json(text: bytes) -> object:
    """Return a JSON value, None for damaged text. Accepts NaN and Infinity, which JSON lacks."""
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def number_in(fields: Mapping[str, Any], name: str) -> float | None:
    """Return a number by its name, or None if it is missing or damaged."""
    value = fields.get(name)
    if isinstance(value, int | float) and abs(value) < MAX_NUMBER:
        return value
    return None


def log_tail(folder: Path, num_bytes: int = 8000) -> str:
    """Return the last lines of log.txt. Carriage returns of progress bars end lines too."""
    text = read_bytes(folder / "log.txt", num_bytes + 1)
    lines = re.split(r"[\r\n]+", text.decode("utf-8", errors="replace"))
    if len(text) > num_bytes:
        del lines[0]  # probably cut
    return "\n".join(lines).strip()
