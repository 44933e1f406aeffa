"""Test reports on files: made once for each version, and again if a check was given up."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.dataset import DatasetReport
from core.dataset.report import file_problem
from ui.handlers import reports

DIED = DatasetReport.refused(file_problem("check_died", "the file was not checked", "try again"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that counts as a large one."""
    monkeypatch.setattr(reports, "LARGE_FILE_BYTES", 0)
    place = tmp_path / "rows.jsonl"
    place.write_text('{"text": "one"}\n')
    return place


def answers(*given: DatasetReport) -> tuple[Callable[..., DatasetReport], list[DatasetReport]]:
    """Return a check that gives these reports in turn, and those that it has not given yet."""
    left = list(given)
    return lambda *_arguments, **_options: left.pop(0), left


def test_a_check_that_died_is_not_repeated_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, left = answers(DIED, DIED)
    monkeypatch.setattr(reports, "check_in_child", check)
    found = [reports.checked(file, "cpt") for _edit in range(2)]
    assert found == [DIED, DIED]
    assert len(left) == 1


def test_a_check_that_died_is_tried_again_later(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, left = answers(DIED, DatasetReport.refused(file_problem("empty", "no rows", "add one")))
    monkeypatch.setattr(reports, "check_in_child", check)
    monkeypatch.setattr(reports, "SECONDS_BETWEEN_TRIES", 0)
    codes = [reports.checked(file, "cpt").problems[0].code for _edit in range(3)]
    assert codes == ["check_died", "empty", "empty"]
    assert left == []
