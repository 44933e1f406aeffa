"""Rows that a run trains on, written as one file: files by weight, mixed, sampled, split.

Copies rows as they are. Keeps the positions of rows in memory, and no row.
"""

import math
import os
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.dataset.files import writing
from core.dataset.formats import detect_format
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import MAX_LINE_BYTES, TOO_LONG
from core.dataset.reading.text_lines import first_rows
from core.dataset.report import ONE_KIND, RowProblem
from core.dataset.rewrite.repair import as_lines, write_lines
from core.job import DatasetError, Problem
from core.job.places import unquoted
from core.training.contract.row_formats import TextFormat, find_row_layout
from core.training.contract.row_reader import content_key, content_of, held_out_rows, read_columns

RowNumbers = NDArray[np.int64]
"""Numbers of rows, counted through all files."""
NO_ROWS: RowNumbers = np.empty(0, dtype=np.int64)
MAX_WEIGHT = 100.0
ROWS_AT_ONCE = 10_000
LONGEST_WEIGHT_SHOWN = 40


@dataclass(frozen=True)
class Selection:
    """Number of rows to take, and the seed of the random choice."""

    max_rows: int = 0
    """Sample of so many rows to train on; 0 takes all."""
    eval_fraction: float = 0.0
    """Share of the rows that is held out, before any is repeated or left out."""
    seed: int = 0
    stage: str = "sft"


@dataclass(frozen=True)
class Composed:
    """Numbers of rows that were written."""

    rows: tuple[int, ...]
    """Rows to train on, by source."""
    eval_rows: int


class TrainedFormat(NamedTuple):
    """Properties that all rows of one training share."""

    dataset_type: str
    text_format: TextFormat

    def __str__(self) -> str:
        return f"{self.dataset_type} rows ({self.text_format})"


def parse_mix(text: str) -> tuple[tuple[Path, float], ...]:
    """Return the files and weights of a job's `mix`: lines of `path = weight`, or of a path alone.

    Raises ValueError that names the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        path, equals, weight = line.rpartition("=")
        if not equals:
            path, weight = line, "1"
        if not line.strip():
            continue
        if not path.strip():
            raise ValueError(f"line {number}: no path before the =; write path = weight")
        place = os.path.expanduser(unquoted(path))  # noqa: PTH111 (as in core/resolve)
        found.append((Path(place), _parse_weight(weight.strip(), number)))
    return tuple(found)


def compose(
    sources: Sequence[tuple[Path, float]],
    target: Path,
    selection: Selection | None = None,
    eval_target: Path | None = None,
) -> Composed:
    """Write the rows of (file, weight) pairs into one file, and held out rows into `eval_target`.

    Weight 0.5 takes half of a file's rows, 2 each row twice, 1.5 each once and half of them again.
    One file keeps its order, several are shuffled. The same seed writes the same file. Raises
    DatasetError if the files hold rows of different formats; OSError.
    """
    selection = selection or Selection()
    require_one_format([path for path, _weight in sources], selection.stage)
    is_whole = len(sources) == 1 and sources[0][1] == 1 and not selection.max_rows
    if is_whole and not (eval_target and selection.eval_fraction):
        return Composed((write_lines(sources[0][0], target).rows,), 0)
    with TemporaryDirectory(prefix=".mixing-", dir=target.parent) as work, ExitStack() as stack:
        paths = [
            as_lines(path, Path(work) / f"{number}.jsonl")
            for number, (path, _weight) in enumerate(sources)
        ]
        index = RowIndex(paths, stack)
        sampler = RowSampler(np.random.default_rng(selection.seed), selection)
        train, held_out = index.all_rows, NO_ROWS
        if eval_target:
            train, held_out = sampler.split(index.content_keys(selection.stage))
        order = sampler.order(train, index.bounds, [weight for _path, weight in sources])
        index.write(order, target)
        if eval_target and len(held_out):
            index.write(held_out, eval_target)
        return Composed(index.counts(order), len(held_out))


def require_one_format(paths: Sequence[Path], stage: str) -> None:
    """Raise DatasetError if the files' first rows cannot be trained on together. Raises OSError."""
    formats = [_trained_format(path, stage) for path in paths]
    for path, other in zip(paths, formats, strict=True):
        if other != formats[0]:
            message = (
                f"{paths[0].name} holds {formats[0] or 'no rows of a known format'} "
                f"but {path.name} holds {other or 'no rows of a known format'}"
            )
            raise DatasetError(Problem("file", message, ONE_KIND))


class RowIndex:
    """Position of each row in several files."""

    def __init__(self, paths: Sequence[Path], stack: ExitStack) -> None:
        offsets = [_row_offsets(path) for path in paths]
        columns = [np.frombuffer(each, dtype=np.uint64) for each in offsets]
        self._begins = np.concatenate([each[:-1] for each in columns])
        self._ends = np.concatenate([each[1:] for each in columns])
        self._files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]
        self.bounds = (0, *accumulate(len(each) - 1 for each in offsets))
        """Row numbers at which the files begin, and the end of the last."""

    @property
    def all_rows(self) -> RowNumbers:
        return np.arange(self.bounds[-1], dtype=np.int64)

    def counts(self, rows: RowNumbers) -> tuple[int, ...]:
        """Return how many of these rows are of each file."""
        return tuple(map(int, np.bincount(self._sources(rows), minlength=len(self._files))))

    def write(self, rows: RowNumbers, target: Path) -> None:
        """Copy these rows, in this order, into a new file."""
        with writing(target) as out:
            for some in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
                begins, sizes = self._begins[some], self._ends[some] - self._begins[some]
                places = (each.tolist() for each in (self._sources(some), begins, sizes))
                for source, begin, size in zip(*places, strict=True):
                    file = self._files[source]
                    file.seek(begin)
                    out.write(file.read(size).removeprefix(BYTE_ORDER_MARK).strip() + b"\n")

    def content_keys(self, stage: str) -> Sequence[int]:
        """Return the key of what each row says, as a stage reads it."""
        keys = array("Q")
        for file, (begin, end) in zip(self._files, pairwise(self.bounds), strict=True):
            for start, stop in zip(self._begins[begin:end], self._ends[begin:end], strict=True):
                file.seek(int(start))
                line = file.read(int(stop - start)).removeprefix(BYTE_ORDER_MARK).strip()
                keys.append(content_key(content_of(line, stage)))
        return keys

    def _sources(self, rows: RowNumbers) -> RowNumbers:
        """Return the index of the file of each row."""
        return np.searchsorted(self.bounds, rows, side="right") - 1


@dataclass(frozen=True)
class RowSampler:
    """Random choices of one selection, all from one seed."""

    random: np.random.Generator
    selection: Selection

    def split(self, keys: Sequence[int]) -> tuple[RowNumbers, RowNumbers]:
        """Return (rows to train on, rows held out), given the content key of each row."""
        fraction, max_rows = self.selection.eval_fraction, self.selection.max_rows
        rows = np.arange(len(keys), dtype=np.int64)
        chosen = held_out_rows(keys, fraction, self.selection.seed)
        if not chosen:
            return rows, NO_ROWS
        held_out = np.array(sorted(chosen), dtype=np.int64)
        train = np.setdiff1d(rows, held_out, assume_unique=True)
        if max_rows:
            fewer = max(1, round(fraction * max_rows))
            held_out = self._sample(held_out, min(fewer, len(held_out)))
        return train, held_out

    def order(
        self, rows: RowNumbers, bounds: Sequence[int], weights: Sequence[float]
    ) -> RowNumbers:
        """Return the rows in the order of training, each as often as the weight of its file says.

        `bounds` are the row numbers at which the files begin. Several files are shuffled.
        """
        ends = np.searchsorted(rows, bounds)
        parts = []
        for (begin, end), weight in zip(pairwise(ends), weights, strict=True):
            parts.append(self._weighted(rows[begin:end], weight))
        order = np.concatenate(parts)
        if 0 < self.selection.max_rows < len(order):
            order = self._sample(order, self.selection.max_rows)
        return self.random.permutation(order) if len(weights) > 1 else order

    def _weighted(self, rows: RowNumbers, weight: float) -> RowNumbers:
        times = int(weight)
        rest = self._sample(rows, round((weight - times) * len(rows)))
        return np.sort(np.concatenate([np.repeat(rows, times), rest]))

    def _sample(self, rows: RowNumbers, count: int) -> RowNumbers:
        if not count:
            return NO_ROWS
        return np.sort(self.random.choice(rows, count, replace=False))


def _parse_weight(text: str, number: int) -> float:
    shown = text[:LONGEST_WEIGHT_SHOWN]
    try:
        weight = float(text)
    except ValueError:
        problem = f"line {number}: {shown!r} is no weight"
        raise ValueError(f"{problem}; write path = weight, such as = 0.5") from None
    if not (math.isfinite(weight) and 0 < weight <= MAX_WEIGHT):
        raise ValueError(
            f"line {number}: the weight {shown} is not above 0 and at most {MAX_WEIGHT:g}"
        )
    return weight


def _row_offsets(path: Path) -> "array[int]":
    """Return the offset of each line that is not blank, and the end of the file.

    Raises DatasetError for a line that is too long to be a row.
    """
    offsets, offset = array("Q"), 0
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 2)
            if not line:
                break
            if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
                raise DatasetError(RowProblem(number, *TOO_LONG).for_user())
            if line.removeprefix(BYTE_ORDER_MARK).strip():
                offsets.append(offset)
            offset += len(line)
    offsets.append(offset)
    return offsets


def _trained_format(path: Path, stage: str) -> TrainedFormat | None:
    """Return what the rows of a file are trained on as, or None if that is not known."""
    rows, is_all = first_rows(path)
    row_format, _evidence = detect_format(rows, stage, is_all=is_all)
    if row_format is None:
        return None
    text_format: TextFormat = ""
    for row in rows:
        layout = find_row_layout(row, stage)
        if layout and layout.row_format is row_format:
            reading = read_columns(row, layout, stage)
            if not reading.faults:
                has_messages = any(isinstance(value, list) for value in reading.row.values())
                text_format = "conversational" if has_messages else "standard"
                break
    return TrainedFormat(row_format.dataset_type, text_format)
