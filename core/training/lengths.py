"""How long rows are and what a maximum length does to them: exact counts over every row measured so far."""

from array import array
from typing import Any

import numpy as np

BINS = 40
NEVER = 2**31 - 1
"""Stands for the first counted token of a row that has none."""


class Lengths:
    """Twelve bytes for each row of a file; a maximum length can be changed without another look at the rows."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.num_unreadable = 0
        self._lengths, self._firsts, self._ends = array("i"), array("i"), array("i")
        self._num_counted = 0

    def add(self, length: int, first_counted: int | None, end_counted: int, num_counted: int) -> None:
        """A row of so many tokens; the first that counts for the loss, the one after the last, how many."""
        self._lengths.append(length)
        self._firsts.append(NEVER if first_counted is None else first_counted)
        self._ends.append(end_counted)
        self._num_counted += num_counted

    def add_unreadable(self) -> None:
        """A row that has no tokens because something is wrong with it."""
        self.num_unreadable += 1

    def summary(self, max_length: int) -> dict[str, Any]:
        """Percentiles, histogram and counts of the rows measured so far."""
        lengths, firsts, ends = (
            np.frombuffer(each, dtype=np.int32) for each in (self._lengths, self._firsts, self._ends)
        )
        longest = int(lengths.max(initial=0))
        width = longest // BINS + 1
        has_answer = firsts < NEVER
        return {
            "rows": self.num_rows,
            "measured": len(lengths) + self.num_unreadable,
            "unreadable_rows": self.num_unreadable,
            "p50": _percentile(lengths, 0.50),
            "p95": _percentile(lengths, 0.95),
            "max": longest,
            "num_tokens": int(lengths.sum(dtype=np.int64)),
            "num_counted_tokens": self._num_counted,
            "histogram": [
                {"from": bin * width, "to": (bin + 1) * width, "rows": int(rows)}
                for bin, rows in enumerate(np.bincount(lengths // width))
            ],
            "truncated_rows": int((lengths > max_length).sum()),
            "fully_masked_rows": int((firsts >= max_length).sum()),
            "unanswered_rows": int((~has_answer).sum()),
            "lost_answer_rows": int((has_answer & (firsts >= max_length)).sum()),
            "cut_answer_rows": int((has_answer & (firsts < max_length) & (ends > max_length)).sum()),
        }


def _percentile(lengths: Any, share: float) -> int:
    """The smallest length that at least this share of the rows does not exceed (nearest rank)."""
    if not len(lengths):
        return 0
    rank = max(0, int(np.ceil(share * len(lengths))) - 1)
    return int(np.partition(lengths, rank)[rank])
