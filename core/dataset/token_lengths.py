"""Lengths of rows in tokens, and what a maximum length does to them.

Numbers of every row are kept, so that a maximum length can be changed without reading the rows
again.
"""

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.dataset.files import writing
from core.dataset.report import counted
from core.job import JobSpec, Problem

HISTOGRAM_BINS = 40
NEVER = 2**31 - 1
"""First token in the loss of a row that has none."""
FIELDS = ("length", "first", "end", "total")
"""Numbers of each row: its tokens, the first and the end of those in the loss, those of all its
texts."""
Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class LostField:
    """Something that rows hold and the chat template does not print."""

    field: str
    """Such as `tools`, `tool_calls`, `tool`, `system` or `reasoning_content`."""
    rows: int
    line: int
    """First of them, 1-based."""

    def __str__(self) -> str:
        rows = f"{counted(self.rows, 'row')}, the first in line {self.line:,}"
        return f"The model's chat template does not print {self.field}: {rows}"

    def to_json(self) -> dict[str, object]:
        """Return what `check --json` and `preview --json` print."""
        return {"field": self.field, "rows": self.rows, "line": self.line}


def sorted_lost(found: Iterable[LostField]) -> tuple[LostField, ...]:
    """Return what is lost in the order in which it is shown: the most frequent first."""
    return tuple(sorted(found, key=lambda each: (-each.rows, each.field)))


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows measured so far, and what one maximum length does to them."""

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
    """{from, to, rows} of each bin: rows of `from` up to `to` tokens, `to` excluded."""
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
    generates: bool = False
    """True if the model generates the answers: then no row has a token that counts, nor needs one.
    """
    lost_in_template: tuple[LostField, ...] = ()

    @property
    def is_complete(self) -> bool:
        return self.measured == self.rows

    @property
    def readable(self) -> int:
        """Number of rows whose tokens are known. Without any, no length means anything."""
        return self.measured - self.unreadable_rows

    def to_json(self) -> dict[str, object]:
        """Return what `check --json` prints."""
        names = (
            "truncated_rows",
            "fully_masked_rows",
            "lost_answer_rows",
            "cut_answer_rows",
            "measured",
        )
        tokens = {name: getattr(self, name) for name in ("p50", "p95", "max")}
        return {
            "tokens": {**tokens, "histogram": list(self.histogram)},
            **{name: getattr(self, name) for name in names},
            "lost_in_template": [each.to_json() for each in self.lost_in_template],
        }


@dataclass(frozen=True)
class _SortedNumbers:
    """Numbers in order, so that a look-up gives the effect of any maximum length."""

    lengths: Numbers
    sums: NDArray[np.int64]
    """Of the first 0, 1, 2 ... lengths."""
    firsts: Numbers
    """Of rows with a token in the loss; so are `ends`."""
    ends: Numbers
    num_tokens: int
    histogram: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, numbers: Numbers) -> "_SortedNumbers":
        """Sort numbers in the order of FIELDS, a line for each row."""
        length, first, end, total = numbers.T
        has_answer = first < NEVER
        lengths = np.sort(length)
        return cls(
            lengths=lengths,
            sums=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            firsts=np.sort(first[has_answer]),
            ends=np.sort(end[has_answer]),
            num_tokens=int(total.sum(dtype=np.int64)),
            histogram=_histogram(length),
        )

    def percentile(self, share: float) -> int:
        """Return the smallest length that this share of the rows does not exceed (nearest rank)."""
        if not len(self.lengths):
            return 0
        return int(self.lengths[max(0, math.ceil(share * len(self.lengths)) - 1)])


def _histogram(lengths: Numbers) -> tuple[Mapping[str, int], ...]:
    width = int(lengths.max(initial=0)) // HISTOGRAM_BINS + 1
    bins = []
    for number, rows in enumerate(np.bincount(lengths // width)):
        bins.append({"from": number * width, "to": (number + 1) * width, "rows": int(rows)})
    return tuple(bins)


class RowLengths:
    """Lengths of every row of a file, in sixteen bytes each."""

    def __init__(self, rows: int, generates: bool = False) -> None:
        self.rows = rows
        self.generates = generates
        self.unreadable_rows = 0
        self.first_unreadable: tuple[int, str] | None = None
        self.lost: tuple[LostField, ...] = ()
        """What the chat template does not print of the rows, the most frequent first."""
        self._numbers = array("i")
        self._sorted: _SortedNumbers | None = None

    @property
    def readable(self) -> int:
        """Number of rows measured so far, without those that cannot be read."""
        return len(self._numbers) // len(FIELDS)

    @property
    def is_complete(self) -> bool:
        return self.readable + self.unreadable_rows == self.rows

    def extend(
        self, numbers: bytes, unreadable_rows: int, first_unreadable: tuple[int, str] | None = None
    ) -> None:
        """Add more rows: int32 numbers in the order of FIELDS, row by row.

        `unreadable_rows` is their number so far, `first_unreadable` (line, reason) of the first.
        """
        self._numbers.frombytes(numbers)
        self.unreadable_rows, self.first_unreadable = unreadable_rows, first_unreadable
        self._sorted = None

    def at(self, max_length: int) -> Lengths:
        """Return what a maximum length does to the rows measured so far.

        Takes microseconds from the second call on.
        """
        known = self._in_order()
        limit = np.int32(max_length)  # another type would make numpy convert all rows
        num_fitting = int(np.searchsorted(known.lengths, limit, "right"))
        truncated = self.readable - num_fitting
        lost = len(known.firsts) - int(np.searchsorted(known.firsts, limit))
        beyond = len(known.ends) - int(np.searchsorted(known.ends, limit, "right"))
        unanswered = 0 if self.generates else self.readable - len(known.firsts)
        kept_tokens = int(known.sums[num_fitting]) + truncated * max_length
        return Lengths(
            max_length=max_length,
            rows=self.rows,
            measured=self.readable + self.unreadable_rows,
            unreadable_rows=self.unreadable_rows,
            p50=known.percentile(0.50),
            p95=known.percentile(0.95),
            max=known.percentile(1),
            num_tokens=known.num_tokens,
            mean_tokens=kept_tokens / max(1, self.readable),
            histogram=known.histogram,
            truncated_rows=truncated,
            fully_masked_rows=0 if self.generates else lost + unanswered,
            unanswered_rows=unanswered,
            lost_answer_rows=lost,
            cut_answer_rows=beyond - lost,
            generates=self.generates,
            lost_in_template=self.lost,
        )

    def max_length_to_keep(self, share: float) -> int:
        """Return the smallest maximum length that cuts off at most this share of the answers."""
        firsts, may_be_lost = self._in_order().firsts, int(share * self.readable)
        return int(firsts[-may_be_lost - 1]) + 1 if may_be_lost < len(firsts) else 1

    def write(self, path: Path) -> None:
        """Keep the numbers in a new file, with what is lost behind them. Raises OSError."""
        lost = json.dumps([each.to_json() for each in self.lost]).encode()
        with writing(path) as file:
            np.save(file, np.frombuffer(self._numbers, dtype=np.int32), allow_pickle=False)
            np.save(file, np.frombuffer(lost, dtype=np.uint8), allow_pickle=False)

    @classmethod
    def read(cls, path: Path, rows: int, generates: bool = False) -> "RowLengths":
        """Return the lengths kept of a file with so many rows. Raises OSError, ValueError."""
        try:
            with path.open("rb") as file:
                numbers = np.load(file, allow_pickle=False)
                lost = json.loads(np.load(file, allow_pickle=False).tobytes())
        except EOFError:  # cut off, or written by a version that kept the numbers alone
            raise ValueError(f"{path} holds no lengths of {rows:,} rows") from None
        num_rows, rest = divmod(numbers.size, len(FIELDS))
        if numbers.dtype != np.int32 or numbers.ndim != 1 or rest or num_rows != rows:
            raise ValueError(f"{path} holds no lengths of {rows:,} rows")
        found = cls(rows, generates)
        found.extend(numbers.tobytes(), unreadable_rows=0)
        found.lost = tuple(LostField(**each) for each in lost)
        return found

    def _in_order(self) -> _SortedNumbers:
        if self._sorted is None:
            # A copy, because an array whose buffer is in use cannot grow.
            numbers = np.array(self._numbers, dtype=np.int32)
            self._sorted = _SortedNumbers.of(numbers.reshape(-1, len(FIELDS)))
        return self._sorted


def length_problems(lengths: RowLengths, job: JobSpec) -> tuple[Problem, ...]:
    """Return why a job should not start on these rows; empty if it may.

    The model cannot read some rows, there is nothing to learn, or too many answers are cut off.
    """
    if lengths.first_unreadable:
        return (_unreadable_problem(lengths),)
    found = lengths.at(job.max_length)
    num_rows = lengths.readable
    if not num_rows or found.generates:
        return ()
    if found.unanswered_rows == num_rows:
        problem = "no row has a token that counts for the loss"
        fix = "give rows with answers, or switch assistant_only_loss off"
        return (Problem("dataset", problem, fix),)
    longer = f"set max_length to {lengths.max_length_to_keep(job.max_lost_answers):,} or more"
    if found.fully_masked_rows == num_rows:
        problem = f"{job.max_length:,} tokens cut off the answer of every row"
        return (Problem("max_length", problem, longer),)
    share = found.lost_answer_rows / num_rows
    if share > job.max_lost_answers:
        rows = f"{found.lost_answer_rows:,} of {num_rows:,} rows ({share:.1%})"
        problem = (
            f"{job.max_length:,} tokens cut off the whole answer of {rows}, "
            f"more than {job.max_lost_answers:.1%}"
        )
        return (Problem("max_length", problem, f"{longer}, or allow it with max_lost_answers"),)
    return ()


def _unreadable_problem(lengths: RowLengths) -> Problem:
    assert lengths.first_unreadable
    line, reason = lengths.first_unreadable
    rows = counted(lengths.unreadable_rows, "row")
    problem = f"the model cannot read {rows}, the first in line {line:,}: {reason}"
    return Problem("dataset", problem, "correct it, or choose a model that takes such rows")
