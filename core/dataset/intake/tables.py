"""CSV as JSON lines: every cell stays the text that it is. Guesses the dialect, never a type."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import orjson

from core.dataset.intake.dialect import CsvReader, Dialect, guess_dialect, read_rows
from core.dataset.reading.lines import MAX_LINE_BYTES
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.reading.text_lines import Recoded
from core.dataset.report import counted, named_lines
from core.job import DatasetError, Problem

SAMPLE_BYTES = 2**16
BUFFER_BYTES = 2**18
LONGEST_NAME_SHOWN = 60
SHOWN_DELIMITERS = MappingProxyType({"\t": "a tab"})


class CountingReader(io.RawIOBase):
    """File that counts the bytes that were read of it."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # UTF-16 may grow to twice its size when it is recoded.
        data: bytes = self._source.read(len(buffer) // 2)
        self.num_bytes += len(data)
        buffer[: len(data)] = data
        return len(data)


def csv_lines(path: Path, delimiter: str = "") -> Iterator[tuple[int, bytes]]:
    """Yield (bytes read so far, a row as a line of JSON); the first row names the columns.

    A delimiter that is empty, or not in the first row, is guessed. Raises DatasetError, OSError.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if foreign := foreign_signature(head):
            raise DatasetError(Problem("file", f"this is {foreign.name}, not CSV", foreign.fix))
        encoding = wide_encoding(head)
        dialect = guess_dialect(_first_text(file, encoding), delimiter)
        file.seek(0)
        counting = CountingReader(Recoded(file, encoding) if encoding else file)
        buffered = io.BufferedReader(counting, BUFFER_BYTES)
        text = io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="")
        reader = read_rows(text, dialect)
        rows = _Rows(reader, dialect)
        try:
            for row in rows.read():
                yield counting.num_bytes, orjson.dumps(row)
        except csv.Error as error:
            raise _wrong_cell(rows, str(error)) from None
        except UnicodeDecodeError:
            problem = "it or a line soon after it is not UTF-8"
            fix = "save the file as UTF-8"
            raise _wrong_line(rows.line + 1, problem, fix) from None


def _first_text(file: BinaryIO, encoding: str | None) -> str:
    """Return the first characters of a file."""
    file.seek(0)
    source = Recoded(file, encoding) if encoding else file
    return source.read(SAMPLE_BYTES).decode("utf-8-sig", errors="replace")


class _Rows:
    """Rows of a table by the names of its columns."""

    def __init__(self, reader: CsvReader, dialect: Dialect) -> None:
        self._reader, self._lines_before = reader, dialect.lines_before
        self._delimiter = dialect.delimiter
        self._wrong_lines: list[int] = []
        self._first_wrong = ""
        self.first_line = 1
        """Line on which the row begins that is read next."""

    @property
    def line(self) -> int:
        """Line on which the last row ends."""
        return self._reader.line_num + self._lines_before

    def read(self) -> Iterator[dict[str, str]]:
        """Yield the rows. Raises DatasetError, at the end for rows of the wrong width."""
        names = _column_names(*self._first_row())
        self.first_line = self.line + 1
        for cells in self._reader:
            self.first_line = self.line + 1
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            elif cells:
                self._note_wrong(len(cells), len(names))
        if self._wrong_lines:
            raise self._wrong_width()

    def _first_row(self) -> tuple[list[str], int]:
        """Return (the cells of the first row that is not blank, its line)."""
        for cells in self._reader:
            if cells:
                return cells, self.line
        problem = "the file is empty" if self.line == 0 else "the file holds blank lines only"
        fix = "give a row with the names of the columns, and a row for each example"
        raise DatasetError(Problem("file", problem, fix))

    def _note_wrong(self, num_cells: int, num_names: int) -> None:
        if not self._wrong_lines:
            cells = counted(num_cells, "cell")
            self._first_wrong = f"has {cells}, the first row {num_names:,}"
        self._wrong_lines.append(self.line)

    def _wrong_width(self) -> DatasetError:
        first, *others = self._wrong_lines
        problem = f"the row that ends here {self._first_wrong}"
        if others:
            problem += f"; others end in {named_lines(others, len(others))}"
        fix = "give every row a cell for each column; a cell that holds {} must be in double quotes"
        sign = SHOWN_DELIMITERS.get(self._delimiter, f'"{self._delimiter}"')
        return _wrong_line(first, problem, fix.format(sign))


def _wrong_cell(rows: _Rows, error: str) -> DatasetError:
    """Return what is wrong with a cell, from what the module csv says of it."""
    if "unexpected end" in error or "field limit" in error:
        fix = "close it with a double quote; inside a cell write a double quote twice"
        problem = "a cell of the row that begins here is opened with a double quote, never closed"
        return _wrong_line(rows.first_line, problem, fix)
    fix = "put a cell that holds double quotes in double quotes, and write those inside it twice"
    return _wrong_line(rows.line, "a double quote stands where no cell begins or ends", fix)


def _wrong_line(line: int, problem: str, fix: str, field: str = "row") -> DatasetError:
    return DatasetError(Problem(f"line {line}, {field[:LONGEST_NAME_SHOWN]}", problem, fix))


def _column_names(cells: Sequence[str], line: int) -> Sequence[str]:
    """Return the names of the columns; one without a name gets its number. Raises DatasetError."""
    if not any(name.strip() for name in cells):
        raise _wrong_line(line, "no column has a name", "name the columns in the first row")
    names = [name if name.strip() else f"column {n}" for n, name in enumerate(cells, start=1)]
    for name in names:
        if names.count(name) > 1:
            fix = "name every column in the first row, each once"
            raise _wrong_line(line, "is the name of two columns", fix, name)
    return names
