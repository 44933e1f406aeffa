"""Dialect of a CSV file: its delimiter, and whether spaces may follow it. Guessed from its head."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Protocol

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_ROWS = 50
ODD_CELL = re.compile(r' +"')
"""Cell whose quotes would be read as a part of it."""
NAMED_DELIMITER = re.compile(r"\ufeff?sep=(.)\r?\n", re.IGNORECASE)
"""First line of files that Excel wrote for another country."""


@dataclass(frozen=True)
class Dialect:
    """Ways in which CSV files differ."""

    delimiter: str
    skips_spaces: bool = False
    """True if spaces after a delimiter are no part of a cell."""
    lines_before: int = 0
    """Lines before the names of the columns."""


def guess_dialect(head: str, delimiter: str = "") -> Dialect:
    """Return the dialect of a file with these first characters.

    A `delimiter` that is given counts, unless the first row does not hold it.
    """
    head = head.replace("\0", "")
    if named := NAMED_DELIMITER.match(head):
        skips = guess_dialect(head[named.end() :], named[1]).skips_spaces
        return Dialect(named[1], skips, lines_before=1)
    given = delimiter and delimiter in head.partition("\n")[0]
    delimiters = (delimiter,) if given else DELIMITERS
    candidates = [Dialect(sign, skips) for skips, sign in product((False, True), delimiters)]
    return max(candidates, key=lambda dialect: _score(head, dialect))


class CsvReader(Protocol):
    """Reader of the module csv."""

    line_num: int
    """Lines read so far."""

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def read_rows(lines: io.TextIOBase, dialect: Dialect) -> CsvReader:
    """Return a reader of the rows of a file, the names of its columns first."""
    for _ in range(dialect.lines_before):
        lines.readline()
    return csv.reader(
        lines,
        delimiter=dialect.delimiter,
        skipinitialspace=dialect.skips_spaces,
        strict=True,
    )


def _score(head: str, dialect: Dialect) -> tuple[bool, float, int]:
    """Return how well a dialect fits: the rows that have the cells of the first, and oddities."""
    rows = _sample(head, dialect)
    if not rows:
        return False, 0, 0
    names = rows[0]
    num_fitting = sum(len(row) == len(names) for row in rows)
    odd_names = sum(name.startswith(" ") for name in names)
    odd_cells = sum(ODD_CELL.match(cell) is not None for row in rows for cell in row)
    if len(names) == 1:
        return False, 0, -odd_names - odd_cells
    return True, num_fitting / len(rows), -odd_names - odd_cells


def _sample(head: str, dialect: Dialect) -> Sequence[list[str]]:
    """Return the first rows, as far as they can be read."""
    rows: list[list[str]] = []
    try:
        rows.extend(
            row for row in islice(read_rows(io.StringIO(head), dialect), SAMPLE_ROWS) if row
        )
    except csv.Error:
        return rows
    return rows
