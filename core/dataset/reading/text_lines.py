"""Rows of a dataset file, in any encoding and layout, as lines of JSON. Changes no text."""

import codecs
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from core.dataset.reading.json_elements import NOT_AN_ARRAY
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.layout import Layout, RowBlocks, detect_layout
from core.dataset.reading.lines import (
    TOO_LONG,
    ByteSource,
    Readable,
    parse_line,
)
from core.dataset.reading.plain_text import Split
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
    path: Path,
    repairs: Collection[str] = (),
    counts: dict[str, int] | None = None,
    *,
    split: Split | None = None,
) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Open a file and give (number, row) of each row, as a line of JSON.

    Of the repairs, `encoding` and `byte_order_mark` are made here. `counts` counts what was
    changed. `split` says how a plain text is split, if not in the usual way. Raises DatasetError if
    the file is not text or its rows are not found, OSError.
    """
    done: Counter[str] = Counter()
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if foreign := foreign_signature(head):
            message = f"this is {foreign.name}, not JSON lines"
            raise DatasetError(Problem("file", message, foreign.fix))
        encoding = wide_encoding(head) if "encoding" in repairs else None
        done["encoding"] = int(encoding is not None)
        rewind = partial(_rewound, file, encoding)
        layout = detect_layout(rewind, path.suffix.lower())
        if split:
            layout = replace(layout, split=split)
        if layout.fault:
            raise DatasetError(RowProblem(1, *layout.fault).for_user())
        yield _rows(RowBlocks(ByteSource(rewind()), layout), layout, repairs, done)
    if counts is not None:
        for name, number in done.items():
            counts[name] = counts.get(name, 0) + number


def layout_of(path: Path) -> Layout:
    """Return the layout of a file in UTF-8. Raises OSError."""
    with path.open("rb") as file:
        return detect_layout(partial(_rewound, file), path.suffix.lower())


def _rewound(file: BinaryIO, encoding: str | None = None) -> Readable:
    """Return a file from its beginning, as UTF-8."""
    file.seek(0)
    return Recoded(file, encoding) if encoding else file


def _rows(
    blocks: RowBlocks, layout: Layout, repairs: Collection[str], counts: Counter[str]
) -> Iterator[tuple[int, bytes]]:
    for block in blocks:
        for number, line in zip(block.numbers, block.lines, strict=True):
            if line is None:
                raise DatasetError(RowProblem(number, *TOO_LONG).for_user())
            if "byte_order_mark" in repairs and line.startswith(BYTE_ORDER_MARK):
                counts["byte_order_mark"] += 1
                line = line.removeprefix(BYTE_ORDER_MARK)
            counts[layout.repair] += 1
            yield number, line
    if not blocks.is_whole:
        raise DatasetError(RowProblem(1, *NOT_AN_ARRAY).for_user())


def first_rows(path: Path) -> tuple[list[Row], bool]:
    """Return (the first rows that can be parsed, whether there are no others). Raises OSError."""
    with path.open("rb") as file:
        layout = detect_layout(partial(_rewound, file), path.suffix.lower())
        file.seek(0)
        source = ByteSource(file)
        rows = _parsed_rows(source, layout)
        return list(islice(rows, SAMPLE_ROWS)), next(rows, None) is None and source.is_at_end


def _parsed_rows(source: ByteSource, layout: Layout) -> Iterator[Row]:
    for block in RowBlocks(source, layout):
        for line in block.lines:
            row, _fault = parse_line(line)
            if row is not None:
                yield row
        if source.num_bytes > SAMPLE_BYTES:
            return
