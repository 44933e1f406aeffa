"""Rows that occur twice, in one file or in two. Keeps twelve bytes of each row, and no row."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.dataset.reading.text_lines import reading
from core.training.contract.row_reader import content_key, content_of

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

    def _lines_of(self, rows: NDArray[np.int64]) -> "array[int]":
        lines = np.frombuffer(self._lines, np.uint32)[rows]
        return array("Q", lines.astype(np.uint64).tobytes())


@dataclass(frozen=True)
class Leak:
    """Rows of an evaluation file that are trained on too."""

    lines: Sequence[int]
    """Their lines in the evaluation file, in order."""
    num_eval_rows: int

    @property
    def is_total(self) -> bool:
        """True if every row that would be evaluated is trained on."""
        return 0 < self.num_eval_rows == len(self.lines)


def find_leak(train: Path, held_out: Path, stage: str) -> Leak:
    """Return which rows of a second file say the same as one of the first, as a stage reads them.

    Raises DatasetError, OSError.
    """
    trained, _lines = _content_keys(train, stage)
    keys, lines = _content_keys(held_out, stage)
    is_leaked = np.isin(np.frombuffer(keys, np.uint64), np.frombuffer(trained, np.uint64))
    places = np.flatnonzero(is_leaked).tolist()
    return Leak([lines[place] for place in places], len(keys))


def _content_keys(path: Path, stage: str) -> tuple["array[int]", "array[int]"]:
    """Return the content key and the line of each row of a file, up to MAX_ROWS."""
    keys, numbers = array("Q"), array("Q")
    with reading(path) as lines:
        for number, line in islice(lines, MAX_ROWS):
            if line.strip():
                keys.append(content_key(content_of(line, stage)))
                numbers.append(number)
    return keys, numbers
