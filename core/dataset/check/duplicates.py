"""Rows that are there twice, in a file or in two. Keeps twelve bytes a row, and no row itself."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 10_000_000
"""Rows that are remembered; with more, memory would no longer be flat."""
BUCKETS = range(-8, 8)
"""Hashes are compared a sixteenth at a time, by their highest bits, which takes a sixteenth of the memory."""


class Fingerprints:
    """The hash and the line of each row of a file, as long as there is room.

    The hashes are Python's own of the rows' bytes, and so good for one process only. Two different rows have the same
    one with a chance of 2^-64.
    """

    def __init__(self) -> None:
        self.hashes = array("q")
        self.lines = array("I")

    @property
    def is_full(self) -> bool:
        return len(self.hashes) >= MOST_ROWS

    def extend(self, lines: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Remembers rows, as long as there is room."""
        if not self.is_full:
            self.hashes.extend(map(hash, map(bytes.strip, lines)))
            self.lines.extend(numbers)

    def repeated_lines(self) -> "array[int]":
        """The lines of rows that an earlier row of the same file equals, in order."""
        return self._lines([_repeated(self._bucket(number)) for number in BUCKETS])

    def lines_also_in(self, other: "Fingerprints") -> "array[int]":
        """The lines of rows that another file has too, in order."""
        return self._lines(
            [_shared(self._bucket(number), other._bucket(number)) for number in BUCKETS]
        )

    def _bucket(self, number: int) -> "Bucket":
        hashes = np.frombuffer(self.hashes, dtype=np.int64)
        rows = np.flatnonzero(hashes >> 60 == number)
        return Bucket(rows, hashes[rows])

    def _lines(self, rows: "list[NDArray[np.int64]]") -> "array[int]":
        found = np.frombuffer(self.lines, dtype=np.uint32)[np.sort(np.concatenate(rows))]
        return array("Q", found.astype(np.uint64).tobytes())


class Bucket(NamedTuple):
    """Some of the rows of a file: their indices, and the hash of each."""

    rows: NDArray[np.int64]
    hashes: NDArray[np.int64]


def _repeated(bucket: Bucket) -> NDArray[np.int64]:
    order = np.argsort(bucket.hashes, kind="stable")
    in_order = bucket.hashes[order]
    return bucket.rows[order[1:][in_order[1:] == in_order[:-1]]]


def _shared(bucket: Bucket, other: Bucket) -> NDArray[np.int64]:
    return bucket.rows[np.isin(bucket.hashes, other.hashes)]
