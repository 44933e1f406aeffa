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

ROWS_AT_ONCE = 1000
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
    num_rows = bytes_before = 0
    for path in paths:
        table, size = _open(path), path.stat().st_size
        first_row = num_rows
        for row in _rows(table, columns.readable):
            num_rows += 1
            out.write(_line(row, num_rows))
            if num_rows % ROWS_AT_ONCE == 0:
                share = (num_rows - first_row) / max(1, table.metadata.num_rows)
                on_bytes(bytes_before + int(size * share))
        bytes_before += size
    return num_rows


def _line(row: dict[str, Any], number: int) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except ValueError:
        names = ", ".join(name for name, value in row.items() if not _is_json(value))
        raise BadTable(
            f"row {number:,} holds NaN or infinity in {names}, which JSON lacks"
        ) from None


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise BadTable(
            f"{path.name} is no readable Parquet table: {str(error).splitlines()[0][:200]}"
        ) from None


def _rows(table: pq.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with_json = {name for name in columns if _holds_json(table.schema_arrow.field(name).type)}
    try:
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
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
