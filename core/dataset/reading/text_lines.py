"""Lines of a dataset file, in any encoding, or of one JSON array. Changes no text."""

import codecs
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from core.dataset.reading.json_array import NOT_AN_ARRAY, JsonArray, is_array
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import (
    TOO_LONG,
    ByteSource,
    Readable,
    blocks_of_lines,
    parse_line,
)
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.report import RowProblem
from core.job import DatasetError, Problem
from core.training.contract.row_columns import Row

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 16 * 2**20
"""Rows of a sample are looked for in these only."""


class Recoded:
    """Text in units of two or four bytes, read as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; empty at the end. Raises DatasetError."""
        try:
            while data := self._file.read(size):
                if text := self._decoder.decode(data):
                    return text.encode()
            return self._decoder.decode(b"", final=True).encode()
        except UnicodeError:
            message = f"is no valid {self._encoding.upper()}"
            raise DatasetError(Problem("file", message, "save it as UTF-8")) from None


@contextmanager
def reading(
    path: Path, repairs: Collection[str] = ("array",), counts: dict[str, int] | None = None
) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Open a file and give (number, line) of each line, with these repairs of the whole file.

    `counts` counts what the repairs changed. Raises DatasetError if the file is not text, OSError.
    """
    done = dict.fromkeys(repairs, 0) if counts is None else counts
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if foreign := foreign_signature(head):
            message = f"this is {foreign.name}, not JSON lines"
            raise DatasetError(Problem("file", message, foreign.fix))
        readable: Readable = file
        encoding = wide_encoding(head)
        if encoding and "encoding" in repairs:
            done["encoding"] = 1
            head = Recoded(file, encoding).read(HEAD_BYTES)
            file.seek(0)
            readable = Recoded(file, encoding)
        yield _lines(ByteSource(readable), head, repairs, done)


def _lines(
    source: ByteSource, head: bytes, repairs: Collection[str], counts: dict[str, int]
) -> Iterator[tuple[int, bytes]]:
    array = JsonArray(source) if is_array(head) and "array" in repairs else None
    for block in array.blocks() if array else blocks_of_lines(source):
        for number, line in zip(block.numbers, block.lines, strict=True):
            if line is None:
                raise DatasetError(RowProblem(number, *TOO_LONG).for_user())
            if "byte_order_mark" in repairs and line.startswith(BYTE_ORDER_MARK):
                counts["byte_order_mark"] += 1
                line = line.removeprefix(BYTE_ORDER_MARK)
            if array:
                counts["array"] += 1
            yield number, line
    if array and not array.is_whole:
        raise DatasetError(RowProblem(1, *NOT_AN_ARRAY).for_user())


def first_rows(path: Path) -> tuple[list[Row], bool]:
    """Return (the first rows that can be parsed, whether there are no others). Raises OSError."""
    with path.open("rb") as file:
        as_array = is_array(file.read(HEAD_BYTES))
        file.seek(0)
        source = ByteSource(file)
        rows = _parsed_rows(source, as_array)
        return list(islice(rows, SAMPLE_ROWS)), next(rows, None) is None and source.is_at_end


def _parsed_rows(source: ByteSource, as_array: bool) -> Iterator[Row]:
    for block in JsonArray(source).blocks() if as_array else blocks_of_lines(source):
        for line in block.lines:
            row, _fault = parse_line(line)
            if row is not None:
                yield row
        if source.num_bytes > SAMPLE_BYTES:
            return
