"""Rows that occur twice, in one file or in two. Keeps twelve bytes of each row, and no row."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.dataset.reading.text_lines import reading

MAX_ROWS = 10_000_000
"""Rows that are remembered; with more, memory would grow with the file."""


class Fingerprints:
    """Hash and line of each row of a file, up to MAX_ROWS.

    The hashes are Python's own of the rows' bytes, so they are good for one process only. Two
    different rows have the same hash with a probability of 2^-64.
    """

    def __init__(self) -> None:
        self._hashes = array("q")
        self._lines = array("I")

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
        return len(self._hashes) >= MAX_ROWS

    def extend(self, lines: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Remember rows, as long as there is room."""
        if not self.is_full:
            self._hashes.extend(map(hash, map(bytes.strip, lines)))
            self._lines.extend(numbers)

    def repeated_lines(self) -> "array[int]":
        """Return the lines of rows that an earlier row of the same file equals, in order."""
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        in_order = hashes[order]
        return self._lines_of(np.sort(order[1:][in_order[1:] == in_order[:-1]]))

    def lines_also_in(self, other: "Fingerprints") -> "array[int]":
        """Return the lines of rows that another file holds too, in order."""
        hashes = np.frombuffer(self._hashes, np.int64)
        is_shared = np.isin(hashes, np.frombuffer(other._hashes, np.int64))
        return self._lines_of(np.flatnonzero(is_shared))

    def _lines_of(self, rows: NDArray[np.int64]) -> "array[int]":
        lines = np.frombuffer(self._lines, np.uint32)[rows]
        return array("Q", lines.astype(np.uint64).tobytes())
