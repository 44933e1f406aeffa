"""Parquet tables as JSON lines, every value as it is: no column whose type JSON lacks is turned into another one."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
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
    """What is wrong with a table, in a few words."""


@dataclass(frozen=True)
class Kept:
    """What is read of tables: all have the columns of the first."""

    columns: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    """(column, its type) of those whose type JSON lacks."""


def columns_of(paths: Sequence[Path], needed: Collection[str]) -> Kept:
    """What can be kept of tables. Raises BadTable if that leaves out a needed column, or one is no table."""
    schema = _open(paths[0]).schema_arrow
    if other := next(
        (path for path in paths[1:] if _open(path).schema_arrow.names != schema.names), None
    ):
        raise BadTable(f"{other.name} has other columns than {paths[0].name}")
    left_out = tuple(
        (field.name, str(field.type)) for field in schema if not _fits_json(field.type)
    )
    if lost := [each for each in left_out if each[0] in needed]:
        raise BadTable(
            "; ".join(f"the column {name} holds {type}, which JSON lacks" for name, type in lost)
        )
    return Kept(tuple(name for name in schema.names if name not in dict(left_out)), left_out)


def write_rows(
    paths: Sequence[Path], kept: Kept, out: BinaryIO, on_rows: Callable[[int], None]
) -> int:
    """Writes each row as a line and returns how many; tells about how many bytes are read. Raises BadTable."""
    num_rows = bytes_before = 0
    for path in paths:
        table, size = _open(path), path.stat().st_size
        begun = num_rows
        for row in _rows(table, kept.columns):
            num_rows += 1
            try:
                out.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            except ValueError:
                names = ", ".join(name for name, value in row.items() if _is_no_json({name: value}))
                raise BadTable(
                    f"row {num_rows:,} holds NaN or infinity in {names}, which JSON lacks"
                ) from None
            if num_rows % ROWS_AT_ONCE == 0:
                on_rows(bytes_before + size * (num_rows - begun) // max(1, table.metadata.num_rows))
        bytes_before += size
    return num_rows


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise BadTable(
            f"{path.name} is no sound Parquet table: {str(error).splitlines()[0][:200]}"
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
    """True if JSON has values of this type, as precise as they are."""
    if isinstance(type, pa.DictionaryType):
        return _fits_json(type.value_type)
    if pa.types.is_struct(type):
        return all(_fits_json(type.field(index).type) for index in range(type.num_fields))
    if any(is_list(type) for is_list in LISTS):
        return _fits_json(type.value_type)
    return isinstance(type, pa.JsonType) or any(is_plain(type) for is_plain in PLAIN)


def _holds_json(type: pa.DataType) -> bool:
    """True if there is text inside that stands for a JSON value, as `datasets` writes messages."""
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


def _is_no_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return True
    return False
