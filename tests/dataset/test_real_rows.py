"""Shapes in which people publish rows: each is read as tests/data/real_rows/expected.json says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.dataset import DatasetReport, check_file
from core.training.contract.row_formats import ROW_FORMATS, RowFormat
from core.training.contract.row_reader import read_row
from tests.builders.dataset_files import trained_rows
from tests.builders.paths import DATA

ROWS = DATA / "real_rows"
EXPECTED: Mapping[str, Mapping[str, Any]] = json.loads(
    (ROWS / "expected.json").read_text(encoding="utf-8")
)
EVERY_SHAPE = pytest.mark.parametrize("name", EXPECTED)


def path_of(name: str) -> Path:
    return ROWS / f"{name}.jsonl"


def checked(name: str) -> DatasetReport:
    return check_file(path_of(name), EXPECTED[name]["stage"])


def test_every_file_is_expected() -> None:
    assert {path.stem for path in ROWS.glob("*.jsonl")} == set(EXPECTED)


@EVERY_SHAPE
def test_a_shape_has_no_problems(name: str) -> None:
    report = checked(name)
    assert report.problems == ()
    assert report.row_format == EXPECTED[name]["kind"]


@EVERY_SHAPE
def test_a_shape_is_read_as_columns_of_trl(name: str) -> None:
    lines = path_of(name).read_bytes().splitlines()
    rows = [read_row(line, EXPECTED[name]["stage"]) for line in lines]
    assert rows == EXPECTED[name]["rows"]


@EVERY_SHAPE
def test_all_that_is_not_read_is_named(name: str) -> None:
    found = [
        [each.field, each.num_rows, each.first_line, each.changes_learning]
        for each in checked(name).not_read
    ]
    assert found == EXPECTED[name]["not_read"]


@EVERY_SHAPE
def test_a_shape_reaches_the_training(name: str) -> None:
    expected = EXPECTED[name]
    found = trained_rows(path_of(name), expected["stage"])
    for row, trained in zip(expected["rows"], found, strict=True):
        assert {key: trained[key] for key in row} == row


@pytest.mark.parametrize("row_format", ROW_FORMATS, ids=lambda each: each.id)
def test_every_row_format_has_a_shape(row_format: RowFormat) -> None:
    in_data = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
    kinds = [each.get("kind") for each in (*EXPECTED.values(), *in_data.values())]
    assert row_format.id in kinds
