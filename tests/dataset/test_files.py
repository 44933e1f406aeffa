"""Each file in tests/data has its verdict in expected.json; what is usable reaches the training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.dataset import DatasetReport, check_file
from core.dataset.rewrite.repair import write_lines
from tests.builders.dataset_files import trained_rows
from tests.builders.paths import DATA

EXPECTED: Mapping[str, Mapping[str, Any]] = json.loads(
    (DATA / "expected.json").read_text(encoding="utf-8")
)
USABLE = [name for name, verdict in EXPECTED.items() if not verdict["problems"]]
USABLE_FOR_SFT = sorted(name for name in USABLE if EXPECTED[name]["stage"] == "sft")


def checked(name: str) -> DatasetReport:
    return check_file(DATA / name, EXPECTED[name]["stage"])


def test_every_file_has_a_verdict() -> None:
    files = {each.name for each in DATA.iterdir() if each.is_file() and each.suffix != ".zip"}
    assert files == {*EXPECTED, "expected.json"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_gets_its_verdict(name: str) -> None:
    report, verdict = checked(name), EXPECTED[name]
    warnings = [[warning.line, warning.code] for warning in report.warnings]
    assert [[problem.line, problem.code] for problem in report.problems] == verdict["problems"]
    assert warnings == verdict.get("warnings", [])
    assert (report.rows, report.num_problems) == (verdict["rows"], len(verdict["problems"]))
    assert list(report.repairs) == verdict.get("repairs", [])


@pytest.mark.parametrize("name", USABLE)
def test_a_usable_file_gets_its_format(name: str) -> None:
    report, verdict = checked(name), EXPECTED[name]
    assert report.is_usable
    assert report.valid_rows == report.rows
    assert (report.row_format, report.format) == (verdict["kind"], verdict["format"])


@pytest.mark.parametrize("name", USABLE_FOR_SFT)
def test_a_usable_file_is_trained_on_with_every_row(name: str, tmp_path: Path) -> None:
    done = write_lines(DATA / name, tmp_path / "rows.jsonl")
    assert len(trained_rows(done.path)) == checked(name).rows


@pytest.mark.parametrize("name", EXPECTED)
def test_a_verdict_is_free_of_the_machine(name: str) -> None:
    for problem in checked(name).problems:
        assert problem.message
        assert problem.fix
        assert "Error" not in str(problem)
        assert str(DATA) not in str(problem)
