"""What `check` makes of files: their type, and every row that cannot be trained on, by line."""

import json
from pathlib import Path

import pytest

from core import dataset
from core.dataset import DatasetReport

CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'


def checked(tmp_path: Path, *lines: str | bytes) -> DatasetReport:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return dataset.check(file)


@pytest.mark.parametrize(
    ("row", "dataset_type", "format"),
    [
        (CHAT, "language modeling", "conversational"),
        ('{"prompt": "Hi", "completion": "Hello"}', "prompt-completion", "standard"),
        ('{"instruction": "Add", "input": "1 1", "output": "2"}', "prompt-completion", "standard"),
        ('{"question": "1 + 1?", "answer": "2"}', "prompt-completion", "standard"),
        ('{"text": "Once upon a time"}', "language modeling", "standard"),
    ],
)
def test_the_type_is_read_off_the_columns(tmp_path: Path, row: str, dataset_type: str, format: str) -> None:
    report = checked(tmp_path, row, row)
    assert report.is_usable and report.rows == report.valid_rows == 2
    assert (report.dataset_type, report.format) == (dataset_type, format)


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ('{"messages": [', "not_json", "column"),
        ("[1, 2]", "not_object", "must be an object"),
        ('{"messages": []}', "empty", "no messages"),
        ('{"messages": "Hi"}', "wrong_kind", "a list of messages"),
        ('{"messages": [{"role": "wizard", "content": "Hi"}]}', "unknown_role", "wizard"),
        ('{"messages": [{"role": "user", "content": 7}]}', "wrong_kind", "not text"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "no_answer", "assistant"),
        ('{"messages": ["Hi"]}', "not_message", "not a message"),
        ('{"text": "another type"}', "missing", "is missing"),
        (CHAT.replace('"Hello"', "NaN"), "not_json", "NaN"),
        (b'{"messages": "\xff"}', "not_utf8", "byte 15"),
        ("[" * 100_000, "too_deep", "nested"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, code: str, says: str) -> None:
    report = checked(tmp_path, CHAT, line, CHAT)
    assert (report.rows, report.valid_rows, report.num_problems) == (3, 2, 1)
    (problem,) = report.problems
    assert (problem.line, problem.code) == (2, code) and says in str(problem)


def test_every_bad_line_is_counted_and_the_first_hundred_are_listed(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT, *["{"] * 250)
    assert report.num_problems == 250 and len(report.problems) == 100


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT, "", "   ", "{")
    assert report.rows == 2 and report.problems[0].line == 4


@pytest.mark.parametrize("lines", [(), ("", "")])
def test_a_file_without_rows_is_not_usable(tmp_path: Path, lines: tuple[str, ...]) -> None:
    report = checked(tmp_path, *lines)
    assert not report.is_usable and report.problems[0].code == "no_rows"


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert checked(tmp_path, b"\xef\xbb\xbf" + CHAT.encode()).is_usable


def test_a_line_of_ten_megabytes_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT, '{"text": "' + "a" * 10 * 2**20 + '"}', CHAT)
    assert (report.rows, report.problems[0].line, report.problems[0].code) == (3, 2, "line_too_long")


def test_unknown_columns_name_the_known_ones(tmp_path: Path) -> None:
    assert "question + answer" in str(checked(tmp_path, '{"foo": 1}').problems[0])


def test_the_report_is_json(tmp_path: Path) -> None:
    printed = json.loads(json.dumps(checked(tmp_path, CHAT, "{").to_json()))
    assert printed.keys() >= {"rows", "valid_rows", "dataset_type", "format", "columns", "num_problems", "problems"}
