"""Values of Parquet tables as JSON: exact where JSON has them, else the nearest, and counted."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.workers.fetch.json_values import JsonValues
from core.workers.fetch.parquet import BadTable, require_tables, write_rows
from tests.builders.dataset_files import rows_in


def table_rows(tmp_path: Path, table: pa.Table) -> tuple[list[Any], JsonValues]:
    """Return (the rows that a table becomes, what JSON could not hold)."""
    source, target = tmp_path / "rows.parquet", tmp_path / "rows.jsonl"
    pq.write_table(table, source)
    require_tables([source])
    values = JsonValues()
    with target.open("wb") as out:
        write_rows([source], values, out, lambda _num_bytes: None)
    return rows_in(target), values


def test_values_of_parquet_are_kept_exactly(tmp_path: Path) -> None:
    message = {"role": "user", "content": "é\u2028"}
    rows = [
        {"n": 2**63, "f": 0.1, "t": "2026-11-22T00:00:00", "l": [message], "b": True},
        {"n": 1, "f": 5e-324, "t": "", "l": [], "b": None},
    ]
    schema = pa.schema(
        [
            ("n", pa.uint64()),
            ("f", pa.float64()),
            ("t", pa.string()),
            ("l", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("b", pa.bool_()),
        ]
    )
    found, values = table_rows(tmp_path, pa.Table.from_pylist(rows, schema))
    assert found == rows
    assert (values.num_nan, values.num_bytes) == (0, 0)


def test_json_inside_of_parquet_is_json_again(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(['{"n": 9223372036854775808}', None], pa.json_())})
    assert table_rows(tmp_path, table)[0] == [{"a": {"n": 2**63}}, {"a": None}]


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (pa.array([date(2026, 11, 22)]), "2026-11-22"),
        (pa.array([datetime(2026, 11, 22, 1)]), "2026-11-22T01:00:00"),
        (pa.array([timedelta(seconds=90)]), 90.0),
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([b"yes"]), "yes"),
        (pa.array([b"\xff\xfe"]), {"num_bytes": 2}),
        (pa.array([{"bytes": b"\x89PNG", "path": "a.png"}], PICTURE), {"path": "a.png"}),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), {"k": 1}),
        (
            pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int32())),
            [["k", 1], ["k", 2]],
        ),
        (pa.array([[(2, b"v")]], pa.map_(pa.int32(), pa.binary())), [[2, "v"]]),
        (pa.array([[{"at": date(2026, 1, 2)}]]), [{"at": "2026-01-02"}]),
        (pa.array([[1.0, float("nan")]]), [1.0, None]),
        (pa.nulls(1), None),
    ],
)
def test_values_that_json_lacks_become_the_nearest(
    tmp_path: Path, values: pa.Array, found: object
) -> None:
    ((row,), _values) = table_rows(tmp_path, pa.table({"a": values}))
    if values.type == PICTURE:
        assert row["a"].pop("bytes") == {"num_bytes": 4}
    assert row["a"] == found


def test_values_that_json_lacks_are_counted(tmp_path: Path) -> None:
    table = pa.table({"score": [float("nan"), 1.0], "picture": [b"\xff", b"text"]})
    _rows, values = table_rows(tmp_path, table)
    assert (values.num_nan, values.num_bytes) == (1, 1)


def test_infinity_is_refused_by_row_and_column(tmp_path: Path) -> None:
    with pytest.raises(BadTable, match="row 2 holds infinity in score, which JSON lacks"):
        table_rows(tmp_path, pa.table({"score": [1.0, float("inf")]}))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(BadTable, match="text is the name of two columns"):
        table_rows(tmp_path, table)
