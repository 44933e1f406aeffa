"""The curves of a run: metrics.jsonl as columns, thinned for a plot. Reads only what was added since the last look."""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tsdownsample import MinMaxDownsampler

from core.runs.files import open_regular, parse_line

Floats = NDArray[np.float64]
CHUNK_BYTES = 2**17
"""Small enough that the parsed rows of a chunk stay in the processor's cache."""
KEPT_BYTES = 256 * 2**20
"""Columns kept in memory, of all runs together, so that a second look is quick."""
MARK_BYTES = 256
"""So much of the text before the end of the last look must still be there, or the file is another one."""


@dataclass(frozen=True)
class Curve:
    """One key of metrics.jsonl, in the order of the file. NaN where the program noted that there was no number."""

    steps: Floats
    values: Floats


class Column:
    """A curve that grows at its end."""

    def __init__(self) -> None:
        self._room = np.empty((2, 1024))
        self._length = 0

    def append(self, steps: Floats, values: Floats) -> None:
        end = self._length + len(steps)
        if end > self._room.shape[1]:
            larger = np.empty((2, 2 * end))
            larger[:, : self._length] = self._room[:, : self._length]
            self._room = larger
        self._room[0, self._length : end], self._room[1, self._length : end] = steps, values
        self._length = end

    @property
    def num_bytes(self) -> int:
        return self._room.nbytes

    def thinned(self, max_points: int) -> Curve:
        """A copy of at most `max_points` points, with the ends, the highs and the lows of the whole."""
        points = self._room[:, : self._length]
        chosen = (
            _telling_points(points[1], max_points) if self._length > max_points else slice(None)
        )
        points = points[:, chosen].copy()
        points.flags.writeable = False  # it may be shown to several
        return Curve(points[0], points[1])


@dataclass
class Metrics:
    """What is known of one metrics.jsonl."""

    path: Path
    columns: dict[str, Column] = field(default_factory=dict)
    num_read_bytes: int = 0
    inode: int = 0
    mark: bytes = b""
    """The last bytes that were read."""
    drawn: dict[int, Mapping[str, Curve]] = field(default_factory=dict)
    """The columns, thinned to so many points, as long as nothing is added."""

    def catch_up(self) -> None:
        """Reads the lines that were added; all of them if the file was replaced, as when a run is resumed."""
        try:
            with open_regular(self.path) as file:
                if not self._is_continued_by(file):
                    self._forget()
                    self.inode = os.fstat(file.fileno()).st_ino
                file.seek(self.num_read_bytes)
                self._read_lines(file)
        except OSError:
            self._forget()

    def thinned(self, max_points: int) -> Mapping[str, Curve]:
        """All columns, each thinned."""
        if max_points not in self.drawn:
            self.drawn[max_points] = {
                key: column.thinned(max_points) for key, column in self.columns.items()
            }
        return self.drawn[max_points]

    def _forget(self) -> None:
        self.columns, self.num_read_bytes, self.mark, self.drawn = {}, 0, b"", {}

    def _is_continued_by(self, file: FileIO) -> bool:
        if os.fstat(file.fileno()).st_ino != self.inode:
            return False
        file.seek(self.num_read_bytes - len(self.mark))
        return file.read(len(self.mark)) == self.mark

    def _read_lines(self, file: FileIO) -> None:
        rest = b""
        while block := file.read(CHUNK_BYTES):
            lines, newline, rest_of_block = block.rpartition(b"\n")
            if not newline:
                rest += block
                continue
            lines, self.drawn = rest + lines, {}
            for key, curve in _curves_in(_rows(lines)).items():
                self.columns.setdefault(key, Column()).append(curve.steps, curve.values)
            self.num_read_bytes += len(lines) + 1
            self.mark = (self.mark + lines + newline)[-MARK_BYTES:]
            rest = rest_of_block

    @property
    def num_bytes(self) -> int:
        return sum(column.num_bytes for column in self.columns.values())


_kept: OrderedDict[Path, Metrics] = OrderedDict()
_lock = threading.Lock()


def read_curves(folder: Path, max_points: int = 2000) -> Mapping[str, Curve]:
    """Every number in metrics.jsonl by its key, each against the step: at most `max_points` points that keep the ends,
    the highs and the lows. A torn last line is left for later.
    """
    path = folder / "metrics.jsonl"
    with _lock:
        metrics = _kept.setdefault(path, Metrics(path))
        _kept.move_to_end(path)
        metrics.catch_up()
        while len(_kept) > 1 and sum(each.num_bytes for each in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)
        return metrics.thinned(max_points)


def _telling_points(values: Floats, max_points: int) -> NDArray[np.intp]:
    """Indices of the ends, of some gaps, and of the highs and lows in equal parts of the rest."""
    gaps = np.flatnonzero(np.isnan(values))
    gaps = gaps[:: max(1, -(-len(gaps) // max(1, max_points // 10)))]
    num_extremes = max(2, (max_points - len(gaps) - 2) // 2 * 2)
    extremes = MinMaxDownsampler().downsample(values, n_out=num_extremes)
    return np.unique(np.concatenate((gaps, extremes.astype(np.intp), (0, len(values) - 1))))


def _rows(lines: bytes) -> list[dict[str, Any]]:
    """The objects among these lines: parsed as one array, which is quick, and one by one only where that fails."""
    try:
        found = orjson.loads(b"[" + lines.replace(b"\n", b",") + b"]")
    except ValueError:
        found = [parse_line(line) for line in lines.split(b"\n")]
    return [row for row in found if isinstance(row, dict)]


def _curves_in(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """The numbers of some rows by key."""
    try:
        return _tabulated(rows)
    except (TypeError, ValueError, OverflowError):  # something among them is no number
        return _tabulated([_numbers(row) for row in rows])


def _tabulated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """The same for rows that hold numbers only: those of the same keys, nearly all, become one matrix."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(place)
    parts: dict[str, list[tuple[list[int], Curve]]] = {}
    for keys, places in alike.items():
        if "step" not in keys:
            continue
        numbers = chain.from_iterable(rows[place].values() for place in places)
        matrix = np.fromiter(numbers, np.float64, len(keys) * len(places)).reshape(-1, len(keys)).T
        for key, values in zip(keys, matrix, strict=True):
            parts.setdefault(key, []).append((places, Curve(matrix[keys.index("step")], values)))
    return {key: _in_order(found) for key, found in parts.items() if key != "step"}


def _in_order(parts: Sequence[tuple[list[int], Curve]]) -> Curve:
    """Points of several matrices, in the order of their rows."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    steps = np.concatenate([curve.steps for _, curve in parts])
    return Curve(steps[order], np.concatenate([curve.values for _, curve in parts])[order])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What is a number in a row, and NaN for what the program named as none."""
    numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
    unknown = row.get("nonfinite")
    return numbers | {str(key): np.nan for key in unknown} if isinstance(unknown, list) else numbers
