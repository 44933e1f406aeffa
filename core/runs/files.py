"""How files of a run folder are read and replaced: regular files only, never through a link; whole or not at all."""

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

FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
"""Neither a link nor a waiting pipe; as bytes on Windows too."""


def open_regular(path: Path) -> FileIO:
    """A file for reading, unbuffered. Raises OSError if it is absent, a link or no plain file."""
    descriptor = os.open(path, FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bytes(path: Path, last: int | None = None) -> bytes:
    """What a file holds, or its last bytes; nothing if it is absent or not a regular file."""
    try:
        with open_regular(path) as file:
            if last is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last))
            return file.read()
    except OSError:
        return b""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} if the file is absent or not one."""
    held = read_bytes(path)
    value = parse_line(held) if held else None
    return value if isinstance(value, dict) else {}


def parse_line(line: bytes) -> object:
    """A JSON value, or None if it is torn. NaN and Infinity, which are no JSON, are read all the same."""
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def number_in(fields: Mapping[str, Any], name: str) -> float | None:
    """The number under a name; None where there is none, or none that can be reckoned with."""
    value = fields.get(name)
    return (
        value if isinstance(value, int | float) and abs(value) < 1e300 else None
    )  # a NaN is not less


def read_rows(path: Path, last: int | None = None) -> tuple[dict[str, Any], ...]:
    """The objects of a JSON Lines file, or of its last bytes; a torn last line is left for later."""
    lines = read_bytes(path, last).split(b"\n")[:-1]
    return tuple(row for line in lines if isinstance(row := parse_line(line), dict))


def log_tail(folder: Path, num_bytes: int = 8000) -> str:
    """The end of log.txt; carriage returns of progress bars are taken as ends of lines."""
    text = read_bytes(folder / "log.txt", num_bytes + 1)
    lines = re.split(r"[\r\n]+", text.decode("utf-8", errors="replace"))
    return "\n".join(lines[1:] if len(text) > num_bytes else lines).strip()
