"""Parquet tables as JSON lines, every value as it is.

No column whose type JSON lacks is turned into another type.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from core.dataset.reading.lines import MAX_LINE_BYTES

ROWS_AT_ONCE = 64
"""So few, because a file of some bytes may hold rows of megabytes each."""
CELLS_AT_ONCE = 100_000
REPORTED_ROWS = 1000
MAX_CELLS_IN_A_ROW = 1_000_000
"""On average. Each null or number of a list is one."""
USUAL_OUTPUT_BYTES = 256 * 2**20
MAX_GROWTH = 200
"""Size of the rows on the disk, compared with a table of more than USUAL_OUTPUT_BYTES."""
PLAIN = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)
LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


class BadTable(ValueError):
    """Raised for a table that cannot be read as rows; the message says why."""


@dataclass(frozen=True)
class TableColumns:
    """TableColumns of tables, all of which have those of the first."""

    readable: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    """(name, type) of those whose type JSON lacks."""


def readable_columns(paths: Sequence[Path]) -> TableColumns:
    """Return which columns can be read. Raises BadTable for files that are no such tables."""
    schema = _open(paths[0]).schema_arrow
    for path in paths[1:]:
        if _open(path).schema_arrow.names != schema.names:
            raise BadTable(f"{path.name} has other columns than {paths[0].name}")
    readable = tuple(field.name for field in schema if _fits_json(field.type))
    lost = [field for field in schema if not _fits_json(field.type)]
    return TableColumns(readable, tuple((field.name, str(field.type)) for field in lost))


def write_rows(
    paths: Sequence[Path], columns: TableColumns, out: BinaryIO, on_bytes: Callable[[int], None]
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
        for row in _rows(table, columns.readable):
            num_rows += 1
            num_written += out.write(_line(row, num_rows))
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


def _line(row: dict[str, Any], number: int) -> bytes:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except ValueError:
        names = ", ".join(name for name, value in row.items() if not _is_json(value))
        raise BadTable(
            f"row {number:,} holds NaN or infinity in {names}, which JSON lacks"
        ) from None
    if len(line) > MAX_LINE_BYTES:
        raise BadTable(f"row {number:,} is longer than {MAX_LINE_BYTES // 2**20} MiB")
    return line


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise BadTable(
            f"{path.name} is no readable Parquet table: {str(error).splitlines()[0][:200]}"
        ) from None


def _rows(table: pq.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with_json = {name for name in columns if _holds_json(table.schema_arrow.field(name).type)}
    cells_in_a_row = _num_cells(table.metadata) / max(1, table.metadata.num_rows)
    num_rows = max(1, min(ROWS_AT_ONCE, int(CELLS_AT_ONCE / max(1.0, cells_in_a_row))))
    try:
        for batch in table.iter_batches(num_rows, columns=list(columns)):
            for row in batch.to_pylist():
                yield row | {
                    name: _decoded(row[name], table.schema_arrow.field(name).type)
                    for name in with_json
                }
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadTable(f"it is damaged: {str(error).splitlines()[0][:200]}") from None


def _fits_json(type: pa.DataType) -> bool:
    """Return whether JSON has values of this type, as precise as they are."""
    if isinstance(type, pa.DictionaryType):
        return _fits_json(type.value_type)
    if pa.types.is_struct(type):
        return all(_fits_json(type.field(index).type) for index in range(type.num_fields))
    if any(is_list(type) for is_list in LISTS):
        return _fits_json(type.value_type)
    return isinstance(type, pa.JsonType) or any(is_plain(type) for is_plain in PLAIN)


def _holds_json(type: pa.DataType) -> bool:
    """Return whether it holds text that is JSON, as `datasets` writes messages."""
    if pa.types.is_struct(type):
        return any(_holds_json(type.field(index).type) for index in range(type.num_fields))
    if any(is_list(type) for is_list in LISTS):
        return _holds_json(type.value_type)
    return isinstance(type, pa.JsonType)


def _decoded(value: Any, type: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_struct(type):
        return {name: _decoded(each, type.field(name).type) for name, each in value.items()}
    if any(is_list(type) for is_list in LISTS):
        return [_decoded(each, type.value_type) for each in value]
    return json.loads(value) if isinstance(type, pa.JsonType) else value


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
