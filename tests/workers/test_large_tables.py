"""Test that small Parquet files which stand for gigabytes are refused, in little memory."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.dataset.intake import import_dataset
from core.job import DatasetError

MIB = 2**20


def refusal(tmp_path: Path, table: pa.Table) -> str:
    """Write a table, and return why it is not imported."""
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    with pytest.raises(DatasetError) as raised:
        import_dataset(str(tmp_path / "rows.parquet"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    return raised.value.reason


def test_a_table_of_endless_lists_is_refused(tmp_path: Path) -> None:
    lists = pa.array([[None] * 2_000_000] * 3, type=pa.list_(pa.int32()))
    assert "2,000,000 values in each row" in refusal(tmp_path, pa.table({"messages": lists}))


@pytest.mark.slow
def test_one_text_in_many_rows_does_not_fill_the_disk(tmp_path: Path) -> None:
    texts = pa.table({"text": ["x" * MIB] * 300})
    assert "would take more than 0.3 GiB on the disk" in refusal(tmp_path, texts)


def test_a_row_that_no_training_could_read_is_named(tmp_path: Path) -> None:
    texts = pa.table({"text": ["fine", "x" * (8 * MIB + 1)]})
    assert "row 2 is longer than 8 MiB" in refusal(tmp_path, texts)
