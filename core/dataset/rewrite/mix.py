"""What a run is trained on, written as one file: several files by weight, mixed, some rows only, some held out.

Copies rows as they are. Keeps the places of rows in memory, and no row.
"""

import math
import os
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.dataset.check.check import first_rows
from core.dataset.check.diagnosis import BYTE_ORDER_MARK
from core.dataset.formats import detect_format
from core.dataset.report import file_problem
from core.dataset.rewrite.files import writing
from core.dataset.rewrite.repair import as_lines, write_lines
from core.job import DatasetError
from core.training.contract.row_columns import Row
from core.training.contract.row_formats import RowFormat, TextFormat, row_faults
from core.training.contract.row_reader import trl_row

Rows = NDArray[np.int64]
"""Numbers of rows, counted through all files."""
NOTHING: Rows = np.empty(0, dtype=np.int64)
MOST_WEIGHT = 100.0
ROWS_AT_ONCE = 10_000
FEWEST_ROWS_TO_SPLIT = 20
"""Of fewer, none is held out: one row would say nothing."""


@dataclass(frozen=True)
class Share:
    """How much is taken of what."""

    max_rows: int = 0
    """A seeded sample of so many rows to train on; 0 takes all."""
    eval_fraction: float = 0.0
    """Share of the rows that is held out, before any is repeated or left out."""
    seed: int = 0
    stage: str = "sft"


@dataclass(frozen=True)
class Composed:
    """What came of it."""

    rows: tuple[int, ...]
    """Rows to train on, by source."""
    eval_rows: int


class Form(NamedTuple):
    """What all rows of a training must share."""

    dataset_type: str
    format: TextFormat
    takes_tools: bool


def parse_mix(text: str) -> tuple[tuple[Path, float], ...]:
    """The files and weights of a job's `mix`, a line each: `path = weight`, or a path alone for weight 1.

    Raises ValueError that names the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        path, equals, weight = line.rpartition("=")
        path, weight = (path.strip(), weight.strip()) if equals else (line.strip(), "1")
        if not line.strip():
            continue
        if not path:
            raise ValueError(f"line {number}: no path before the =; write path = weight")
        found.append((Path(os.path.expanduser(path)), _weight(weight, number)))  # noqa: PTH111 (as in core.resolve)
    return tuple(found)


def compose(
    sources: Sequence[tuple[Path, float]],
    target: Path,
    share: Share | None = None,
    eval_target: Path | None = None,
) -> Composed:
    """Writes the rows of files by weight: 0.5 is half of a file's rows, 2 each row twice, 1.5 each once and half again.

    One file keeps its order, several are shuffled; the rows that are held out go to `eval_target`, if there are any.
    The same seed writes the same file. Raises DatasetError if the files hold rows of different kinds; OSError.
    """
    share = share or Share()
    require_one_form([path for path, _weight in sources], share.stage)
    is_whole = len(sources) == 1 and sources[0][1] == 1 and not share.max_rows
    if is_whole and not (eval_target and share.eval_fraction):
        return Composed((write_lines(sources[0][0], target).rows,), 0)
    with TemporaryDirectory(prefix=".mixing-", dir=target.parent) as work, ExitStack() as stack:
        paths = [
            as_lines(path, Path(work) / f"{number}.jsonl")
            for number, (path, _weight) in enumerate(sources)
        ]
        catalogue = Catalogue(paths, stack)
        draw = Draw(np.random.default_rng(share.seed), share)
        train, held_out = (
            draw.split(catalogue.all_rows) if eval_target else (catalogue.all_rows, NOTHING)
        )
        order = draw.order(train, catalogue.bounds, [weight for _path, weight in sources])
        catalogue.write(order, target)
        if eval_target and len(held_out):
            catalogue.write(held_out, eval_target)
        return Composed(catalogue.counts(order), len(held_out))


class Catalogue:
    """Where each row of several files stands."""

    def __init__(self, paths: Sequence[Path], stack: ExitStack):
        places = [_places(path) for path in paths]
        self._begins = np.concatenate(
            [np.frombuffer(each, dtype=np.uint64)[:-1] for each in places]
        )
        self._ends = np.concatenate([np.frombuffer(each, dtype=np.uint64)[1:] for each in places])
        self._files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]
        self.bounds = (0, *accumulate(len(each) - 1 for each in places))
        """Row numbers at which the files begin, and the end of the last."""

    @property
    def all_rows(self) -> Rows:
        return np.arange(self.bounds[-1], dtype=np.int64)

    def counts(self, rows: Rows) -> tuple[int, ...]:
        """How many of these rows are of each file."""
        return tuple(map(int, np.bincount(self._sources(rows), minlength=len(self._files))))

    def write(self, rows: Rows, target: Path) -> None:
        """Copies these rows, in this order, into a new file."""
        with writing(target) as out:
            for some in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
                begins, sizes = self._begins[some], self._ends[some] - self._begins[some]
                for source, begin, size in zip(
                    *map(np.ndarray.tolist, (self._sources(some), begins, sizes)), strict=True
                ):
                    file = self._files[source]
                    file.seek(begin)
                    out.write(file.read(size).removeprefix(BYTE_ORDER_MARK).strip() + b"\n")

    def _sources(self, rows: Rows) -> Rows:
        return np.searchsorted(self.bounds, rows, side="right") - 1


@dataclass(frozen=True)
class Draw:
    """What chance decides, from one seed."""

    chance: np.random.Generator
    share: Share

    def split(self, rows: Rows) -> tuple[Rows, Rows]:
        """(rows to train on, rows held out)."""
        if not self.share.eval_fraction or len(rows) < FEWEST_ROWS_TO_SPLIT:
            return rows, NOTHING
        held_out = self._sample(rows, max(1, round(self.share.eval_fraction * len(rows))))
        train = np.setdiff1d(rows, held_out, assume_unique=True)
        if self.share.max_rows:
            fewer = max(1, round(self.share.eval_fraction * self.share.max_rows))
            held_out = self._sample(held_out, min(fewer, len(held_out)))
        return train, held_out

    def order(self, rows: Rows, bounds: Sequence[int], weights: Sequence[float]) -> Rows:
        """The rows as they are trained on: as often as their file's weight says, mixed if there are several files."""
        ends = np.searchsorted(rows, bounds)
        of_files = [rows[begin:end] for begin, end in pairwise(ends)]
        order = np.concatenate(
            [self._weighted(each, weight) for each, weight in zip(of_files, weights, strict=True)]
        )
        if 0 < self.share.max_rows < len(order):
            order = self._sample(order, self.share.max_rows)
        return self.chance.permutation(order) if len(weights) > 1 else order

    def _weighted(self, rows: Rows, weight: float) -> Rows:
        whole = int(weight)
        rest = self._sample(rows, round((weight - whole) * len(rows)))
        return np.sort(np.concatenate([np.repeat(rows, whole), rest]))

    def _sample(self, rows: Rows, count: int) -> Rows:
        return np.sort(self.chance.choice(rows, count, replace=False)) if count else NOTHING


def _weight(text: str, number: int) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(
            f"line {number}: {text[:40]!r} is no weight; write path = weight, such as = 0.5"
        ) from None
    if not (math.isfinite(weight) and 0 < weight <= MOST_WEIGHT):
        raise ValueError(
            f"line {number}: the weight {text[:40]} is not above 0 and at most {MOST_WEIGHT:g}"
        )
    return weight


def _places(path: Path) -> "array[int]":
    """Where each row begins, blank lines being no rows; and the end of the file."""
    found, offset = array("Q"), 0
    with path.open("rb") as file:
        for line in file:
            if line.removeprefix(BYTE_ORDER_MARK).strip():
                found.append(offset)
            offset += len(line)
    found.append(offset)
    return found


def require_one_form(paths: Sequence[Path], stage: str) -> None:
    """Raises DatasetError if the first rows of the files are not written in ways that can be trained on together."""
    forms = {path: _form(path, stage) for path in paths}
    first, *others = paths
    if odd := next((path for path in others if forms[path] != forms[first]), None):
        names = " but ".join(f"{path.name} holds {_words(forms[path])}" for path in (first, odd))
        fix = "give files whose rows are of one type and format"
        raise DatasetError(file_problem("mixed_kinds", names, fix).for_user())


def _form(path: Path, stage: str) -> Form | None:
    rows = first_rows(path)
    row_format, _evidence = detect_format([tuple(row) for row in rows], stage, is_all=False)
    if row_format is None:
        return None
    text_format = _trained_format(rows, row_format, stage)
    return Form(row_format.dataset_type, text_format, row_format.takes_tools)


def _trained_format(rows: Sequence[Row], row_format: RowFormat, stage: str) -> TextFormat:
    """Return whether the first sound row is trained on as messages or as plain text."""
    for row in rows:
        if row.keys() >= set(row_format.columns) and not row_faults(row, row_format):
            values = trl_row(row, row_format, stage).values()
            has_messages = any(isinstance(value, list) for value in values)
            return "conversational" if has_messages else "standard"
    return ""


def _words(form: Form | None) -> str:
    if form is None:
        return "no rows of a known format"
    tools = "" if form.takes_tools else ", without tools"
    return f"{form.dataset_type} rows ({form.format}{tools})"
