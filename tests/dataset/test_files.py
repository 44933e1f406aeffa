"""Every file in tests/data gets the verdict that expected.json has for it, and what is usable reaches the trainer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.dataset import DatasetReport, check_file, write_lines
from core.training.contract.row_formats import ROW_FORMATS, RowFormat
from core.training.data.rows import read_rows
from tests.builders.paths import DATA

EXPECTED: Mapping[str, Mapping[str, Any]] = json.loads(
    (DATA / "expected.json").read_text(encoding="utf-8")
)
USABLE_FOR_SFT = sorted(
    name
    for name, verdict in EXPECTED.items()
    if not verdict["problems"] and verdict["stage"] == "sft"
)


def checked(name: str) -> DatasetReport:
    return check_file(DATA / name, EXPECTED[name]["stage"])


def test_every_file_has_a_verdict_and_there_are_many() -> None:
    files = {path.name for path in DATA.glob("*.json*")} - {"expected.json"}
    assert files == set(EXPECTED) and len(files) >= 60


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_gets_its_verdict(name: str) -> None:
    report, verdict = checked(name), EXPECTED[name]
    assert [[problem.line, problem.code] for problem in report.problems] == verdict["problems"]
    assert [[warning.line, warning.code] for warning in report.warnings] == verdict.get(
        "warnings", []
    )
    assert (report.rows, report.num_problems) == (verdict["rows"], len(verdict["problems"]))
    assert list(report.repairs) == verdict.get("repairs", [])
    if not verdict["problems"]:
        assert report.is_usable and report.valid_rows == report.rows
        assert (report.row_format, report.format) == (verdict["kind"], verdict["format"])


@pytest.mark.parametrize("row_format", ROW_FORMATS, ids=lambda row_format: row_format.id)
def test_every_row_format_has_a_good_file(row_format: RowFormat) -> None:
    assert any(verdict.get("kind") == row_format.id for verdict in EXPECTED.values())


@pytest.mark.parametrize("name", USABLE_FOR_SFT)
def test_a_usable_file_reaches_the_trainer_with_every_row(name: str, tmp_path: Path) -> None:
    write_lines(DATA / name, tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.0, 0).train
    assert len(rows) == checked(name).rows


@pytest.mark.parametrize("name", EXPECTED)
def test_a_verdict_is_said_without_a_word_of_the_machine(name: str) -> None:
    for problem in checked(name).problems:
        assert (
            problem.message
            and problem.fix
            and "Error" not in str(problem)
            and str(DATA) not in str(problem)
        )
