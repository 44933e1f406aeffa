"""Rows of a JSONL file, read one at a time: only their positions are kept. Knows no tokens."""

import hashlib
import json
import time
from array import array
from bisect import bisect_left
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from core.training.contract.row_columns import Row
from core.training.contract.row_reader import read_row


class RowsOnDisk:
    """Rows of a file, of which sixteen bytes each are in memory."""

    def __init__(self, path: Path, stage: str = "sft") -> None:
        self._path, self._stage = path, stage
        self._offsets, self._lines = array("Q"), array("Q")
        digest, offset = hashlib.sha256(), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.removeprefix(BOM_UTF8).strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
        self._size = offset
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def line(self, index: int) -> int:
        """Return the 1-based line of a row."""
        return self._lines[index]

    def index(self, line: int) -> int:
        """Return the row on a line, or the next one after it; the last for a line beyond it."""
        return min(bisect_left(self._lines, line), len(self) - 1)

    def row(self, index: int) -> Row:
        """Return a row in TRL's columns. Raises BadRow."""
        return read_row(self.json(index), self._stage)

    def json(self, index: int) -> bytes:
        """Return a row as the file holds it."""
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            return file.readline().removeprefix(BOM_UTF8).strip()

    def find(self, text: str, first: int, seconds: float) -> tuple[int | None, int]:
        """Search for `text`, in upper or lower case, until the time limit.

        Return (the first row from `first` on that holds it, the row to continue from).
        """
        needles, index = _needles(text), max(0, first)
        deadline = time.monotonic() + seconds
        with self._path.open("rb") as file:
            file.seek(self._offsets[index] if index < len(self) else self._size)
            for line in file:
                if not line.removeprefix(BOM_UTF8).strip():
                    continue
                lowered = line.lower()
                if any(needle in lowered for needle in needles):
                    return index, index + 1
                index += 1
                if time.monotonic() > deadline:
                    break
        return None, index


def _needles(text: str) -> Sequence[bytes]:
    """Return the ways in which JSON may hold a text, plain or escaped, in lower case."""
    needles = set()
    for variant in (text, text.lower(), text.upper()):
        for ascii_only in (True, False):
            written = json.dumps(variant, ensure_ascii=ascii_only)[1:-1]
            needles.add(written.encode(errors="surrogatepass").lower())
    return sorted(needles)
