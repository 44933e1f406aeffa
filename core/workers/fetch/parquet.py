"""Parquet tables as JSON lines, every value as it is; json_values says how JSON has it."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from core.dataset.reading.lines import MAX_LINE_BYTES

from .json_values import JsonValues, can_convert, is_plain

ROWS_AT_ONCE = 64
"""So few, because a file of some bytes may hold rows of megabytes each."""
CELLS_AT_ONCE = 100_000
BYTES_AT_ONCE = 64 * 2**20
REPORTED_ROWS = 1000
MAX_CELLS_IN_A_ROW = 1_000_000
"""On average. Each null or number of a list is one."""
USUAL_OUTPUT_BYTES = 256 * 2**20
MAX_GROWTH = 200
"""Size of the rows on the disk, compared with a table of more than USUAL_OUTPUT_BYTES."""


class BadTable(ValueError):
    """Raised for a table that cannot be read as rows; the message says why."""


def require_tables(paths: Sequence[Path]) -> None:
    """Raise BadTable for files that are no tables of the same columns, or cannot be read."""
    schema = _open(paths[0]).schema_arrow
    for path in paths[1:]:
        if _open(path).schema_arrow.names != schema.names:
            raise BadTable(f"{path.name} has other columns than {paths[0].name}")
    for field in schema:
        if schema.names.count(field.name) > 1:
            raise BadTable(f"{field.name} is the name of two columns; name each once")
        if not can_convert(field.type):
            raise BadTable(f"{field.name} is of type {field.type}, which JSON lacks; leave it out")


def write_rows(
    paths: Sequence[Path], values: JsonValues, out: BinaryIO, on_bytes: Callable[[int], None]
) -> int:
    """Write each row as a line and return the number of rows. Raises BadTable.

    `on_bytes` is called with about the number of bytes read so far.
    """
    num_rows = bytes_before = num_written = 0
    max_written = USUAL_OUTPUT_BYTES + MAX_GROWTH * sum(path.stat().st_size for path in paths)
    for path in paths:
        _require_few_cells(path)
    for path in paths:
        table, size = _open(path), path.stat().st_size
        first_row = num_rows
        for row in _rows(table, values):
            num_rows += 1
            num_written += out.write(_line(row, num_rows, values))
            if num_written > max_written:
                limit = f"{max_written / 2**30:.1f} GiB"
                raise BadTable(f"its rows would take more than {limit} on the disk")
            if num_rows % REPORTED_ROWS == 0:
                share = (num_rows - first_row) / max(1, table.metadata.num_rows)
                on_bytes(bytes_before + int(size * share))
        bytes_before += size
    return num_rows


def _require_few_cells(path: Path) -> None:
    """Raise BadTable if a table says that its rows hold more values than a row of text can."""
    metadata = _open(path).metadata
    cells_in_a_row = _num_cells(metadata) / max(1, metadata.num_rows)
    if cells_in_a_row > MAX_CELLS_IN_A_ROW:
        raise BadTable(f"{path.name} holds {cells_in_a_row:,.0f} values in each row")


def _num_cells(metadata: pq.FileMetaData) -> int:
    """Return how many values all columns hold, those inside of lists included."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return sum(
        group.column(number).num_values for group in groups for number in range(group.num_columns)
    )


def _line(row: dict[str, Any], number: int, values: JsonValues) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = _line_without_nan(row, number, values)
    line = text.encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise BadTable(f"row {number:,} is longer than {MAX_LINE_BYTES // 2**20} MiB")
    return line


def _line_without_nan(row: dict[str, Any], number: int, values: JsonValues) -> str:
    row = values.without_nan(row)
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        names = ", ".join(name for name, value in row.items() if not _is_json(value))
        raise BadTable(f"row {number:,} holds infinity in {names}, which JSON lacks") from None


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise BadTable(
            f"{path.name} is no readable Parquet table: {str(error).splitlines()[0][:200]}"
        ) from None


def _rows(table: pq.ParquetFile, values: JsonValues) -> Iterator[dict[str, Any]]:
    types = {field.name: field.type for field in table.schema_arrow}
    converted = {name: type for name, type in types.items() if not is_plain(type)}
    num_rows = _num_rows_at_once(table.metadata)
    try:
        for batch in table.iter_batches(num_rows):
            for row in batch.to_pylist():
                for name, type in converted.items():
                    row[name] = values.converted(row[name], type)
                yield row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise BadTable(f"it is damaged: {str(error).splitlines()[0][:200]}") from None


def _num_rows_at_once(metadata: pq.FileMetaData) -> int:
    """Return how many rows to read at once, so that no pictures fill the memory."""
    rows = max(1, metadata.num_rows)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    bytes_in_a_row = max(1.0, sum(group.total_byte_size for group in groups) / rows)
    cells_in_a_row = max(1.0, _num_cells(metadata) / rows)
    fitting = min(CELLS_AT_ONCE / cells_in_a_row, BYTES_AT_ONCE / bytes_in_a_row)
    return max(1, min(ROWS_AT_ONCE, int(fitting)))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
