"""Evaluation rows that are trained on are found by line and warned of, and refuse nothing."""

import json
from pathlib import Path

import pytest

from core.dataset import check_file, check_in_child
from core.job import DatasetError

TRAIN = '{"text": "a"}\n{"text": "b"}\n{"text": "d"}\n'
HELD_OUT = '{"text": "c"}\n\n{"text": "b"}\n{"text": "d"}\n'


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(TRAIN)
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "eval.jsonl"
    path.write_text(HELD_OUT)
    return path


def test_rows_in_both_files_are_warned_of_by_line(train: Path, held_out: Path) -> None:
    report = check_in_child(train, eval_path=held_out)
    assert report.leaked == 2
    assert [(each.line, each.code) for each in report.warnings] == [(3, "leaked"), (4, "leaked")]


def test_a_leak_stops_nothing(train: Path, held_out: Path) -> None:
    assert check_file(train, eval_path=held_out).is_usable


def test_a_leak_is_a_sentence_with_its_lines(train: Path, held_out: Path) -> None:
    warning = check_file(train, eval_path=held_out).leak_warning
    assert "The evaluation data has 2 rows (lines 3, 4)" in warning


def test_of_many_leaks_the_first_lines_are_named(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "{number}"}}\n' for number in range(50))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "eval.jsonl").write_text(rows + '{"text": "new"}\n')
    report = check_file(tmp_path / "train.jsonl", eval_path=tmp_path / "eval.jsonl")
    assert "(lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 40 more)" in report.leak_warning


def test_without_a_leak_there_is_no_sentence(train: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"text": "c"}\n')
    report = check_file(train, eval_path=tmp_path / "eval.jsonl")
    assert report.leaked == 0
    assert report.leak_warning == ""


def test_an_evaluation_file_may_be_an_array(train: Path, tmp_path: Path) -> None:
    array = tmp_path / "eval.json"
    array.write_text(json.dumps([{"text": "c"}, {"text": "b"}]))
    report = check_file(train, eval_path=array)
    assert [each.line for each in report.warnings] == [2]


def test_an_evaluation_file_that_is_no_text_is_refused(train: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DatasetError, match="gzip data"):
        check_file(train, eval_path=tmp_path / "eval.jsonl")


def test_an_evaluation_file_of_trained_rows_only_is_warned_of_as_that(
    train: Path, tmp_path: Path
) -> None:
    (tmp_path / "eval.jsonl").write_text('{"text": "b"}\n{ "text":"a"}\n')
    report = check_file(train, eval_path=tmp_path / "eval.jsonl")
    assert (report.leaked, report.eval_rows) == (2, 2)
    assert report.leak_warning.startswith("Every row of the evaluation data is trained on too")
