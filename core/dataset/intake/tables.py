"""CSV as JSON lines: every cell stays the text that it is. Guesses the delimiter, never a type."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from core.dataset.reading.lines import MAX_LINE_BYTES
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.reading.text_lines import Recoded
from core.job import DatasetError, Problem

DELIMITERS = (",", ";", "\t", "|")
BUFFER_BYTES = 2**18
LONGEST_NAME_SHOWN = 60


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

    An empty delimiter is guessed. Raises DatasetError, OSError.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if foreign := foreign_signature(head):
            raise DatasetError(Problem("file", f"this is {foreign.name}, not CSV", foreign.fix))
        encoding = wide_encoding(head)
        counting = CountingReader(Recoded(file, encoding) if encoding else file)
        buffered = io.BufferedReader(counting, BUFFER_BYTES)
        text = io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter or _guess_delimiter(head), strict=True)
        try:
            names = _column_names(next(reader, []))
            for cells in reader:
                if cells:
                    yield counting.num_bytes, orjson.dumps(_row(names, cells, reader.line_num))
        except csv.Error as error:
            fix = "put cells with quotes, commas or line ends in double quotes"
            raise _wrong_line(reader.line_num, f"not CSV: {error}", fix) from None
        except UnicodeDecodeError:
            problem = "it or a line soon after it is not UTF-8"
            fix = "save the file as UTF-8"
            raise _wrong_line(reader.line_num + 1, problem, fix) from None


def _wrong_line(line: int, problem: str, fix: str, field: str = "row") -> DatasetError:
    return DatasetError(Problem(f"line {line}, {field[:LONGEST_NAME_SHOWN]}", problem, fix))


def _column_names(cells: Sequence[str]) -> Sequence[str]:
    """Return the column names in the first row. Raises DatasetError."""
    fix = "name every column in the first row, each once"
    if not cells or not all(name.strip() for name in cells):
        raise _wrong_line(1, "a column has no name", fix)
    for name in cells:
        if cells.count(name) > 1:
            raise _wrong_line(1, "is the name of two columns", fix, name)
    return cells


def _row(names: Sequence[str], cells: Sequence[str], line: int) -> dict[str, str]:
    if len(cells) != len(names):
        problem = f"the row that ends here has {len(cells):,} cells, the first row {len(names):,}"
        raise _wrong_line(line, problem, "give every row a cell for each column")
    return dict(zip(names, cells, strict=True))


def _guess_delimiter(head: bytes) -> str:
    """Return the delimiter that occurs most often in the first row, outside of quotes."""
    first_row = head.decode("utf-8", errors="replace").replace("\0", "").partition("\n")[0]
    unquoted: Iterable[str] = first_row.split('"')[::2]
    counts = {sign: sum(part.count(sign) for part in unquoted) for sign in DELIMITERS}
    return max(counts, key=lambda sign: counts[sign])
