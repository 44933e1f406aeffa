"""Objects whose values are columns, as pandas writes tables: their cells are put into rows."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import ByteSource, LineBlock

MAX_BYTES = 64 * 2**20
"""Largest file that is read so: it is in memory as a whole."""
ROWS_AT_ONCE = 1000


def columns_as_rows(value: Any, at_most: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of an object whose values are columns, [] for any other value.

    A column is a list of values, or an object of values by the numbers of their rows.
    """
    if not isinstance(value, dict) or not value:
        return []
    columns = [_cells(each) for each in value.values()]
    is_one_list = len(value) == 1 and isinstance(next(iter(value.values())), list)
    if is_one_list or any(each.keys() != columns[0].keys() for each in columns):
        return []
    rows = []
    for row in islice(columns[0], at_most):
        rows.append({name: cells[row] for name, cells in zip(value, columns, strict=True)})
    return rows


def blocks_of_columns(source: ByteSource) -> Iterator[LineBlock]:
    """Yield the rows of a file that is one object of columns."""
    text = b""
    while data := source.read():
        if len(text) <= MAX_BYTES:
            text += data
    if len(text) > MAX_BYTES:
        yield LineBlock((1,), (None,), b"")
        return
    try:
        rows = columns_as_rows(json.loads(text.removeprefix(BYTE_ORDER_MARK)))
    except (ValueError, RecursionError):
        rows = []
    if not rows:
        line = text.replace(b"\n", b" ")
        yield LineBlock((1,), (line,), line)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in some]
        yield LineBlock(range(first + 1, first + 1 + len(some)), lines, b"\n".join(lines))


def _cells(column: Any) -> dict[str, Any]:
    """Return the cells of a column by the number of their row; {} if it is no column."""
    cells = {}
    if isinstance(column, list):
        cells = {str(row): cell for row, cell in enumerate(column)}
    elif isinstance(column, dict) and all(map(str.isdigit, column)):
        cells = column
    return {} if any(isinstance(cell, dict) for cell in cells.values()) else cells
