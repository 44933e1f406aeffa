"""A journal: one JSON object a line, only ever added to. A full disk or a crash costs it no line that was written."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..contract.files import write_text


class Journal:
    """A JSONL file of rows that each belong to a step."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting: list[bytes] = []
        """Lines for which the disk had no room yet."""

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a row; if it cannot be written now, it is written with a later one."""
        self._waiting.append(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        try:
            self._write(b"".join(self._waiting))
        except OSError:
            return  # no reading is worth a training
        self._waiting.clear()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, the oldest first; a line torn by a crash is left out."""
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                yield row

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets the rows after `step`; returns the others."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.path.exists():
            write_text(
                self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            )
        return kept

    def sync(self) -> None:
        """Waits until all rows would survive a power cut."""
        with suppress(OSError), self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def _write(self, lines: bytes) -> None:
        """All of the lines or none: a disk that is full in their midst would leave a torn one."""
        with self.path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                written = file.write(lines)
            except OSError:
                written = 0
            if written != len(lines):
                file.truncate(size)
                raise OSError(f"{self.path.name} could not be added to")
