"""How long rows are in tokens, and what a maximum length does to them; what must not be trained on for that reason.

Numbers of every row are kept, so that a maximum length can be changed without another look at the rows.
"""

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.dataset.report import counted
from core.dataset.rewrite.files import writing
from core.job import JobSpec, Problem

BINS = 40
NEVER = 2**31 - 1
"""Stands for the first token in the loss of a row that has none."""
FIELDS = ("length", "first", "end", "total")
Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Lengths:
    """How long the rows are, and what one maximum length does to them; exact for the rows measured so far."""

    max_length: int
    rows: int
    measured: int
    unreadable_rows: int
    p50: int
    p95: int
    max: int
    num_tokens: int
    """Of all rows, uncut; both answers of a preference."""
    mean_tokens: float
    """Of a row after the cut; of the longer answer of a preference."""
    histogram: tuple[Mapping[str, int], ...]
    """{from, to, rows} of each bin: rows of `from` up to `to` tokens, `to` left out."""
    truncated_rows: int
    """Longer than max_length."""
    fully_masked_rows: int
    """Without a token that counts for the loss, within max_length."""
    unanswered_rows: int
    """Those of them without such a token at any length."""
    lost_answer_rows: int
    """Those of them whose whole answer is cut off."""
    cut_answer_rows: int
    """Rows that lose a part of their answer."""
    is_drawn: bool = False
    """True if the model draws the answers itself: then no row has a token that counts, and none needs one."""

    @property
    def is_complete(self) -> bool:
        return self.measured == self.rows

    @property
    def mean_fill(self) -> float:
        """How full a row of max_length is on average, 0 to 1; packing fills it. At 0.8 or more it gains little."""
        return self.mean_tokens / self.max_length

    def to_json(self) -> dict[str, object]:
        """What `check --json` prints of it."""
        tokens = {
            "p50": self.p50,
            "p95": self.p95,
            "max": self.max,
            "histogram": list(self.histogram),
        }
        names = (
            "truncated_rows",
            "fully_masked_rows",
            "lost_answer_rows",
            "cut_answer_rows",
            "measured",
        )
        return {"tokens": tokens} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Sorted:
    """The numbers in order, so that any maximum length is a look-up."""

    lengths: Numbers
    sums: NDArray[np.int64]
    """Of the first 0, 1, 2 ... lengths."""
    firsts: Numbers
    """Of rows with a token in the loss; so are `ends`."""
    ends: Numbers
    num_tokens: int
    histogram: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, numbers: Numbers) -> "Sorted":
        """What numbers in the order of FIELDS, a line for each row, amount to."""
        length, first, end, total = numbers.T
        has_answer = first < NEVER
        width = int(length.max(initial=0)) // BINS + 1
        bins = enumerate(np.bincount(length // width))
        return cls(
            lengths=np.sort(length),
            sums=np.concatenate([[0], np.cumsum(np.sort(length), dtype=np.int64)]),
            firsts=np.sort(first[has_answer]),
            ends=np.sort(end[has_answer]),
            num_tokens=int(total.sum(dtype=np.int64)),
            histogram=tuple(
                {"from": bin * width, "to": (bin + 1) * width, "rows": int(rows)}
                for bin, rows in bins
            ),
        )

    def percentile(self, share: float) -> int:
        """The smallest length that at least this share of the rows does not exceed (nearest rank)."""
        rank = max(0, math.ceil(share * len(self.lengths)) - 1)
        return int(self.lengths[rank]) if len(self.lengths) else 0


class RowLengths:
    """Sixteen bytes for each row of a file: its tokens, the first and the end of those in the loss, all it holds."""

    def __init__(self, rows: int, is_drawn: bool = False):
        self.rows = rows
        self.is_drawn = is_drawn
        self.unreadable_rows = 0
        self.first_unreadable: tuple[int, str] | None = None
        self._numbers = array("i")
        self._sorted: Sorted | None = None

    @property
    def readable(self) -> int:
        """Rows measured so far, without those that cannot be read."""
        return len(self._numbers) // len(FIELDS)

    @property
    def is_complete(self) -> bool:
        return self.readable + self.unreadable_rows == self.rows

    def extend(
        self, numbers: bytes, unreadable_rows: int, first_unreadable: tuple[int, str] | None = None
    ) -> None:
        """More rows: int32 numbers in the order of FIELDS, row by row; and how many by now could not be read, with the
        line of the first, and why."""
        self._numbers.frombytes(numbers)
        self.unreadable_rows, self.first_unreadable = unreadable_rows, first_unreadable
        self._sorted = None

    def at(self, max_length: int) -> Lengths:
        """What a maximum length does to the rows measured so far. Takes microseconds once it has been asked."""
        known, most = (
            self._in_order(),
            np.int32(max_length),
        )  # another type would have all rows converted
        fitting = int(np.searchsorted(known.lengths, most, "right"))
        truncated = self.readable - fitting
        lost = len(known.firsts) - int(np.searchsorted(known.firsts, most))
        beyond = len(known.ends) - int(np.searchsorted(known.ends, most, "right"))
        unanswered = self.readable - len(known.firsts)
        kept_tokens = int(known.sums[fitting]) + truncated * max_length
        return Lengths(
            max_length=max_length,
            rows=self.rows,
            measured=self.readable + self.unreadable_rows,
            unreadable_rows=self.unreadable_rows,
            p50=known.percentile(0.50),
            p95=known.percentile(0.95),
            max=int(known.lengths[-1]) if self.readable else 0,
            num_tokens=known.num_tokens,
            mean_tokens=kept_tokens / max(1, self.readable),
            histogram=known.histogram,
            truncated_rows=truncated,
            fully_masked_rows=0 if self.is_drawn else lost + unanswered,
            unanswered_rows=0 if self.is_drawn else unanswered,
            lost_answer_rows=lost,
            cut_answer_rows=beyond - lost,
            is_drawn=self.is_drawn,
        )

    def max_length_to_keep(self, share: float) -> int:
        """The smallest maximum length at which at most this share of the rows loses its whole answer."""
        firsts, may_be_lost = self._in_order().firsts, int(share * self.readable)
        return int(firsts[-may_be_lost - 1]) + 1 if may_be_lost < len(firsts) else 1

    def write(self, path: Path) -> None:
        """Keeps them in a file, which must not be there. Raises OSError."""
        with writing(path) as file:
            np.save(file, np.frombuffer(self._numbers, dtype=np.int32), allow_pickle=False)

    @classmethod
    def read(cls, path: Path, rows: int, is_drawn: bool = False) -> "RowLengths":
        """What was kept of a file with so many rows, all of them read. Raises OSError, ValueError if it is something
        else."""
        numbers = np.load(path, allow_pickle=False)
        known, rest = divmod(numbers.size, len(FIELDS))
        if numbers.dtype != np.int32 or numbers.ndim != 1 or rest or known != rows:
            raise ValueError(f"{path} holds no lengths of {rows:,} rows")
        found = cls(rows, is_drawn)
        found.extend(numbers.tobytes(), unreadable_rows=0)
        return found

    def _in_order(self) -> Sorted:
        if self._sorted is None:
            numbers = np.array(
                self._numbers, dtype=np.int32
            )  # a copy: an array that is looked at cannot grow
            self._sorted = Sorted.of(numbers.reshape(-1, len(FIELDS)))
        return self._sorted


def refusals(lengths: RowLengths, job: JobSpec) -> tuple[Problem, ...]:
    """Why a job should not be started on these rows: some are none to the model, there is nothing to learn, or too many
    answers are cut off."""
    found = lengths.at(job.max_length)
    num_rows = found.measured - found.unreadable_rows
    if lengths.first_unreadable:
        line, why = lengths.first_unreadable
        problem = f"{counted(found.unreadable_rows, 'row')} cannot be put before the model, the first is line {line:,}: {why}"
        return (
            Problem(
                "dataset", problem, "correct what is wrong, or choose a model that takes such rows"
            ),
        )
    if not num_rows or found.is_drawn:
        return ()
    longer = f"set max_length to {lengths.max_length_to_keep(job.max_lost_answers):,} or more"
    if found.unanswered_rows == num_rows:
        problem = "no row has a token that counts for the loss"
        return (
            Problem(
                "dataset", problem, "give rows with answers, or switch assistant_only_loss off"
            ),
        )
    if found.fully_masked_rows == num_rows:
        problem = f"{job.max_length:,} tokens cut off the answer of every row"
        return (Problem("max_length", problem, longer),)
    share = found.lost_answer_rows / num_rows
    if share > job.max_lost_answers:
        rows = f"{found.lost_answer_rows:,} of {num_rows:,} rows ({share:.1%})"
        problem = f"{job.max_length:,} tokens cut off the whole answer of {rows}, more than {job.max_lost_answers:.1%}"
        return (Problem("max_length", problem, f"{longer}, or allow it with max_lost_answers"),)
    return ()
