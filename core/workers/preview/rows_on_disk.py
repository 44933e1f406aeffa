"""The rows of a JSONL file, one at a time: only their places are kept. Reads bytes; knows nothing of tokens."""

import hashlib
import json
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.training.contract.row_columns import Row
from core.training.contract.row_reader import read_row

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLOCK_BYTES = 2**20


class RowsOnDisk:
    """Sixteen bytes for each row."""

    def __init__(self, path: Path, stage: str = "sft"):
        self._path, self._stage = path, stage
        self._offsets, self._lines = array("Q"), array("Q")
        digest, offset = hashlib.sha256(), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.removeprefix(BYTE_ORDER_MARK).strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
        self._size = offset
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def line(self, index: int) -> int:
        """The 1-based line of a row."""
        return self._lines[index]

    def index(self, line: int) -> int:
        """The row on a line, or the next one after it; the last for a line beyond it."""
        return min(bisect_left(self._lines, line), len(self) - 1)

    def text(self, index: int) -> bytes:
        """A row as it stands in the file."""
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            return file.readline().removeprefix(BYTE_ORDER_MARK).strip()

    def row(self, index: int) -> Row:
        """A row in TRL's columns. Raises BadRow."""
        return read_row(self.text(index), self._stage)

    def search(self, text: str, first: int, most: int, seconds: float) -> tuple[list[int], int]:
        """(rows from `first` on that hold a text in any case, the row to go on from), after at most so many seconds."""
        needles, found, begin = _needles(text), list[int](), max(0, first)
        deadline = time.monotonic() + seconds
        with self._path.open("rb") as file:
            while begin < len(self) and len(found) < most and time.monotonic() < deadline:
                end = max(
                    begin + 1, bisect_left(self._offsets, self._offsets[begin] + BLOCK_BYTES, begin)
                )
                file.seek(self._offsets[begin])
                block = file.read(self._end(end - 1) - self._offsets[begin]).lower()
                found += self._rows_with(needles, block, range(begin, end))
                begin = end
        return (found[:most], found[most - 1] + 1) if len(found) >= most else (found, begin)

    def _rows_with(self, needles: Sequence[bytes], block: bytes, rows: range) -> Iterator[int]:
        base, at = self._offsets[rows.start], 0
        while hits := [hit for hit in (block.find(needle, at) for needle in needles) if hit >= 0]:
            row = bisect_left(self._offsets, base + min(hits) + 1, rows.start, rows.stop) - 1
            yield row
            at = self._end(row) - base

    def _end(self, index: int) -> int:
        return self._offsets[index + 1] if index + 1 < len(self) else self._size


def _needles(text: str) -> Sequence[bytes]:
    """The ways in which JSON may hold a text, its ASCII letters in lower case: as it is, or escaped."""
    variants = {text, text.lower(), text.upper()}
    written = {
        json.dumps(each, ensure_ascii=ascii)[1:-1] for each in variants for ascii in (True, False)
    }
    return sorted({each.encode(errors="surrogatepass").lower() for each in written})
