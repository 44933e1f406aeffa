"""Append-only JSONL files. A full disk or a crash never damages a line that was written."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..contract.files import write_text


class Journal:
    """JSONL file whose rows each belong to a step."""

    def __init__(self, path: Path):
        self.path = path
        self._unwritten: list[bytes] = []
        """Lines that did not fit on the disk yet."""

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row. If it cannot be written now, it is written with a later one."""
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        self._unwritten.append(line)
        try:
            self._write(b"".join(self._unwritten))
        except OSError:
            return  # a training is worth more than a line of its log
        self._unwritten.clear()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row, oldest first. Lines torn by a crash are skipped."""
        if not self.path.exists():
            return
        # Split at newlines only: answers may hold other line ends, such as U+2028.
        for line in self.path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                yield row

    def truncate_after(self, step: int) -> list[dict[str, Any]]:
        """Remove the rows after `step`; return the others."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.path.exists():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
            write_text(self.path, "".join(lines))
        return kept

    def sync(self) -> None:
        """Wait until all rows would survive a power cut."""
        with suppress(OSError), self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def _write(self, lines: bytes) -> None:
        """Write all lines or none: a disk that fills up halfway would leave a torn line. Raises
        OSError."""
        with self.path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                num_written = file.write(lines)
            except OSError:
                num_written = 0
            if num_written != len(lines):
                file.truncate(size)
                raise OSError(f"{self.path.name} could not be written to")
