"""Curves of a run: metrics.jsonl as columns, thinned for a plot. Reads only new lines."""

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

from core.runs.files import open_regular, parse_json

Numbers = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]
CHUNK_BYTES = 2**17
"""Small enough that the parsed rows of a chunk stay in the processor's cache."""
CACHE_BYTES = 256 * 2**20
"""Columns of all runs that are kept in memory."""
TAIL_BYTES = 256
"""Text before the end of the last read. If it has changed, the file is another one."""


@dataclass(frozen=True)
class Curve:
    """One key of metrics.jsonl, in the order of the file. NaN where the value was not finite."""

    steps: Numbers
    values: Numbers


class GrowingCurve:
    """Curve that points are appended to."""

    def __init__(self) -> None:
        self._points = np.empty((2, 1024))  # row 0: steps, row 1: values
        self._length = 0

    def append(self, steps: Numbers, values: Numbers) -> None:
        end = self._length + len(steps)
        if end > self._points.shape[1]:
            larger = np.empty((2, 2 * end))
            larger[:, : self._length] = self._points[:, : self._length]
            self._points = larger
        self._points[0, self._length : end] = steps
        self._points[1, self._length : end] = values
        self._length = end

    @property
    def num_bytes(self) -> int:
        return self._points.nbytes

    def thinned(self, max_points: int) -> Curve:
        """Return at most `max_points` points, with the ends, maxima and minima of all."""
        points = self._points[:, : self._length]
        if self._length > max_points:
            kept = _characteristic_points(points[1], max_points)
            steps, values = points[:, kept]
        else:
            steps, values = points.copy()
        steps.flags.writeable = values.flags.writeable = False  # several callers share it
        return Curve(steps, values)


@dataclass
class MetricsFile:
    """Columns of one metrics.jsonl, as far as it has been read."""

    path: Path
    curves: dict[str, GrowingCurve] = field(default_factory=dict)
    num_read_bytes: int = 0
    inode: int = 0
    tail: bytes = b""
    """Last bytes that were read."""
    thinned_curves: dict[int, Mapping[str, Curve]] = field(default_factory=dict)
    """max_points -> all curves, valid until a row is added."""

    def read_new_lines(self) -> None:
        """Read the new lines, or all if the file was replaced, as when a run is resumed."""
        try:
            with open_regular(self.path) as file:
                if not self._is_start_of(file):
                    self._forget()
                    self.inode = os.fstat(file.fileno()).st_ino
                file.seek(self.num_read_bytes)
                self._read_lines(file)
        except OSError:
            self._forget()

    def thinned(self, max_points: int) -> Mapping[str, Curve]:
        """Return all curves, each thinned."""
        if max_points not in self.thinned_curves:
            self.thinned_curves[max_points] = {
                key: curve.thinned(max_points) for key, curve in self.curves.items()
            }
        return self.thinned_curves[max_points]

    @property
    def num_bytes(self) -> int:
        return sum(curve.num_bytes for curve in self.curves.values())

    def _forget(self) -> None:
        self.curves, self.num_read_bytes, self.tail, self.thinned_curves = {}, 0, b"", {}

    def _is_start_of(self, file: FileIO) -> bool:
        if os.fstat(file.fileno()).st_ino != self.inode:
            return False
        file.seek(self.num_read_bytes - len(self.tail))
        return file.read(len(self.tail)) == self.tail

    def _read_lines(self, file: FileIO) -> None:
        torn_line = b""
        while chunk := file.read(CHUNK_BYTES):
            lines, newline, rest = (torn_line + chunk).rpartition(b"\n")
            torn_line = rest
            if not newline:
                continue
            self.thinned_curves = {}
            for key, curve in _curves_in(_rows(lines)).items():
                self.curves.setdefault(key, GrowingCurve()).append(curve.steps, curve.values)
            self.num_read_bytes += len(lines) + 1
            self.tail = (self.tail + lines + newline)[-TAIL_BYTES:]


_cache: OrderedDict[Path, MetricsFile] = OrderedDict()
_lock = threading.Lock()


def read_curves(folder: Path, max_points: int = 2000) -> Mapping[str, Curve]:
    """Return every number in a run's metrics.jsonl by its key, against the step.

    Each curve has at most `max_points` points, with the ends, maxima and minima of all.
    """
    path = folder / "metrics.jsonl"
    with _lock:
        file = _cache.setdefault(path, MetricsFile(path))
        _cache.move_to_end(path)
        file.read_new_lines()
        while len(_cache) > 1 and sum(each.num_bytes for each in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        return file.thinned(max_points)


def _characteristic_points(values: Numbers, max_points: int) -> NDArray[np.intp]:
    """Return the indices of the ends, some gaps, and the maxima and minima in equal parts."""
    gaps = np.flatnonzero(np.isnan(values))
    max_gaps = max(1, max_points // 10)
    gaps = gaps[:: max(1, -(-len(gaps) // max_gaps))]
    num_extremes = max(2, (max_points - len(gaps) - 2) // 2 * 2)
    extremes = MinMaxDownsampler().downsample(values, n_out=num_extremes)
    return np.unique(np.concatenate((gaps, extremes.astype(np.intp), (0, len(values) - 1))))


def _rows(lines: bytes) -> list[dict[str, Any]]:
    """Parse lines as one array, which is fast, or one by one if a line is damaged."""
    try:
        values = orjson.loads(b"[" + lines.replace(b"\n", b",") + b"]")
    except ValueError:
        values = [parse_json(line) for line in lines.split(b"\n")]
    return [value for value in values if isinstance(value, dict)]


def _curves_in(rows: Rows) -> dict[str, Curve]:
    try:
        return _tabulate(rows)
    except (TypeError, ValueError, OverflowError):  # some value is not a number
        return _tabulate([_numbers_in(row) for row in rows])


def _tabulate(rows: Rows) -> dict[str, Curve]:
    """Return the curves of rows that hold numbers only.

    Rows with the same keys, which are nearly all, become one matrix.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if "step" in row:
            places.setdefault(tuple(row), []).append(place)
    parts: dict[str, list[tuple[list[int], Curve]]] = {}
    for keys, where in places.items():
        numbers = chain.from_iterable(rows[place].values() for place in where)
        matrix = np.fromiter(numbers, np.float64, len(keys) * len(where)).reshape(-1, len(keys)).T
        steps = matrix[keys.index("step")]
        for key, values in zip(keys, matrix, strict=True):
            parts.setdefault(key, []).append((where, Curve(steps, values)))
    return {key: _in_order(parts[key]) for key in parts if key != "step"}


def _in_order(parts: Sequence[tuple[list[int], Curve]]) -> Curve:
    """Join the points of several matrices in the order of their rows."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    steps = np.concatenate([curve.steps for _, curve in parts])
    values = np.concatenate([curve.values for _, curve in parts])
    return Curve(steps[order], values[order])


def _numbers_in(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a row, and NaN for keys that the program wrote under `nonfinite`."""
    numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
    nonfinite = row.get("nonfinite")
    if isinstance(nonfinite, list):
        numbers |= {str(key): np.nan for key in nonfinite}
    return numbers
