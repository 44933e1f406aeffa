"""Rows that occur twice, in one file or in two. Keeps twelve bytes of each row, and no row."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.dataset.reading.text_lines import reading

MAX_ROWS = 10_000_000
"""Rows that are remembered; with more, memory would grow with the file."""
BUCKETS = range(-8, 8)
"""Hashes are compared a sixteenth at a time, by their highest bits, to save memory."""


class Bucket(NamedTuple):
    """Some of the rows of a file: their indices, and the hash of each."""

    rows: NDArray[np.int64]
    hashes: NDArray[np.int64]


class Fingerprints:
    """Hash and line of each row of a file, up to MAX_ROWS.

    The hashes are Python's own of the rows' bytes, so they are good for one process only. Two
    different rows have the same hash with a probability of 2^-64.
    """

    def __init__(self) -> None:
        self.hashes = array("q")
        self.lines = array("I")

    @classmethod
    def of_file(cls, path: Path) -> "Fingerprints":
        """Return those of a whole file. Raises DatasetError, OSError."""
        prints = cls()
        with reading(path) as lines:
            for number, line in lines:
                if line.strip():
                    prints.extend([line], [number])
        return prints

    @property
    def is_full(self) -> bool:
        return len(self.hashes) >= MAX_ROWS

    def extend(self, lines: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Remember rows, as long as there is room."""
        if not self.is_full:
            self.hashes.extend(map(hash, map(bytes.strip, lines)))
            self.lines.extend(numbers)

    def repeated_lines(self) -> "array[int]":
        """Return the lines of rows that an earlier row of the same file equals, in order."""
        return self._lines_of([_repeated(self._bucket(number)) for number in BUCKETS])

    def lines_also_in(self, other: "Fingerprints") -> "array[int]":
        """Return the lines of rows that another file holds too, in order."""
        buckets = [(self._bucket(number), other._bucket(number)) for number in BUCKETS]
        return self._lines_of([_shared(one, two) for one, two in buckets])

    def _bucket(self, number: int) -> Bucket:
        hashes = np.frombuffer(self.hashes, dtype=np.int64)
        rows = np.flatnonzero(hashes >> 60 == number)
        return Bucket(rows, hashes[rows])

    def _lines_of(self, rows: list[NDArray[np.int64]]) -> "array[int]":
        lines = np.frombuffer(self.lines, dtype=np.uint32)[np.sort(np.concatenate(rows))]
        return array("Q", lines.astype(np.uint64).tobytes())


def _repeated(bucket: Bucket) -> NDArray[np.int64]:
    order = np.argsort(bucket.hashes, kind="stable")
    in_order = bucket.hashes[order]
    return bucket.rows[order[1:][in_order[1:] == in_order[:-1]]]


def _shared(bucket: Bucket, other: Bucket) -> NDArray[np.int64]:
    return bucket.rows[np.isin(bucket.hashes, other.hashes)]
