"""Small dataset files for tests, and the training program's view of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.training.data.rows import read_rows

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
CHAT_LINE = json.dumps(CHAT)


def write_lines_of(path: Path, lines: Iterable[str | bytes]) -> Path:
    """Write lines as they are."""
    encoded = (line if isinstance(line, bytes) else line.encode() for line in lines)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def write_json_rows(path: Path, rows: Iterable[object]) -> Path:
    """Write each row as one line of JSON."""
    return write_lines_of(path, (json.dumps(row) for row in rows))


def rows_in(path: Path) -> list[Any]:
    """Return the rows of a file, parsed."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def trained_rows(path: Path, stage: str = "sft") -> list[dict[str, Any]]:
    """Return the rows of a file as the training program reads them."""
    return list(read_rows(path.parent, path.name, "", 0.0, 0, stage=stage).train)
