"""CSV as JSON lines: every cell stays the text that it is. Guesses the delimiter, never a type."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from core.dataset.check.diagnosis import MAX_LINE_BYTES
from core.dataset.check.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.report import RowProblem, file_problem
from core.dataset.rewrite.files import Recoded
from core.job import DatasetError

DELIMITERS = (",", ";", "\t", "|")
TRUTHS: Mapping[str, bool] = MappingProxyType(
    {
        word: truth
        for truth, words in ((True, "true 1 yes y"), (False, "false 0 no n"))
        for word in words.split()
    }
)
"""What may stand in a column that is read as true or false, in lower case."""


class ReadBytes(io.RawIOBase):
    """A file that knows how many of its bytes were read."""

    def __init__(self, source: Any):
        self._source = source
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._source.read(len(buffer) // 2)  # UTF-16 may grow to twice its size
        self.num_bytes += len(data)
        buffer[: len(data)] = data
        return len(data)


def csv_lines(path: Path, delimiter: str = "", label: str = "") -> Iterator[tuple[int, bytes]]:
    """(bytes read so far, a row as a line of JSON); the first row of the file names the columns.

    An empty delimiter is guessed; `label` is a column to be read as true or false. Raises DatasetError, OSError.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if foreign := foreign_signature(head):
            raise DatasetError(
                file_problem("not_text", f"this is {foreign.name}, not CSV", foreign.fix).for_user()
            )
        encoding = wide_encoding(head)
        counted = ReadBytes(Recoded(file, encoding) if encoding else file)
        text = io.TextIOWrapper(io.BufferedReader(counted, 2**18), encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter or _delimiter(head), strict=True)
        try:
            names = _names(next(reader, []), label)
            for cells in reader:
                if cells:
                    yield (
                        counted.num_bytes,
                        orjson.dumps(_row(names, cells, label, reader.line_num)),
                    )
        except csv.Error as error:
            fix = "put cells with quotes, commas or line ends in double quotes"
            raise DatasetError(
                RowProblem(reader.line_num, "row", "not_csv", f"not CSV: {error}", fix).for_user()
            ) from None
        except UnicodeDecodeError:
            problem = RowProblem(
                reader.line_num + 1,
                "row",
                "not_utf8",
                "it or a line soon after it is not UTF-8",
                UTF8,
            )
            raise DatasetError(problem.for_user()) from None


UTF8 = "save the file as UTF-8"


def _names(cells: Sequence[str], label: str) -> Sequence[str]:
    """The column names in the first row. Raises DatasetError."""
    fix = "name every column in the first row, each once"
    if not cells or not all(name.strip() for name in cells):
        raise DatasetError(RowProblem(1, "row", "no_names", "a column has no name", fix).for_user())
    if twice := [name for name in cells if cells.count(name) > 1]:
        raise DatasetError(
            RowProblem(
                1, twice[0][:60], "duplicate_key", "is the name of two columns", fix
            ).for_user()
        )
    if label and label not in cells:
        raise DatasetError(
            RowProblem(
                1, label[:60], "missing", "is no column of the file", "name one that is"
            ).for_user()
        )
    return cells


def _row(
    names: Sequence[str], cells: Sequence[str], label: str, line: int
) -> dict[str, str | bool]:
    if len(cells) != len(names):
        message = f"the row that ends here has {len(cells):,} cells, the first row {len(names):,}"
        raise DatasetError(
            RowProblem(
                line, "row", "cells", message, "give every row a cell for each column"
            ).for_user()
        )
    row: dict[str, str | bool] = dict(zip(names, cells, strict=True))
    if label:
        cell = str(row[label])
        if cell.strip().lower() not in TRUTHS:
            message = f"{cell[:60]!r} is neither true nor false"
            raise DatasetError(
                RowProblem(
                    line, label[:60], "wrong_kind", message, f"write one of {', '.join(TRUTHS)}"
                ).for_user()
            )
        row[label] = TRUTHS[cell.strip().lower()]
    return row


def _delimiter(head: bytes) -> str:
    """The sign that is most often in the first row, outside of quotes."""
    first_row = head.decode("utf-8", errors="replace").replace("\0", "").partition("\n")[0]
    outside: Iterable[str] = first_row.split('"')[::2]
    counts = {sign: sum(part.count(sign) for part in outside) for sign in DELIMITERS}
    return max(counts, key=lambda sign: counts[sign])
