"""Repairs write a new file, say what they did, and leave every text as it was."""

import json
from pathlib import Path

import pytest

from core import dataset
from core.dataset import Wish
from core.job import DatasetError
from tests.builders.paths import DATA


def written(tmp_path: Path, name: str) -> tuple[dataset.Written, bytes]:
    """A file of tests/data, repaired."""
    done = dataset.repair(DATA / name, tmp_path / "repaired.jsonl")
    return done, done.path.read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("utf16.jsonl", "UTF-8"),
        ("utf16_no_mark.jsonl", "UTF-8"),
        ("byte_order_mark.jsonl", "byte order mark"),
        ("crlf.jsonl", "2 carriage returns"),
        ("carriage_returns.jsonl", "2 carriage returns"),
        ("array_pretty.json", "2 lines"),
        ("array_one_line.json", "2 lines"),
        ("trailing_comma.jsonl", "brackets in 2 rows"),
        ("pretty_object.jsonl", "3 lines"),
        ("two_on_a_line.jsonl", "1 line"),
    ],
)
def test_a_repair_makes_the_file_usable_and_says_what_it_did(
    tmp_path: Path, name: str, says: str
) -> None:
    done, _text = written(tmp_path, name)
    report = dataset.check_file(done.path)
    assert report.is_usable and report.repairs == () and done.rows == report.rows
    assert any(says in action for action in done.actions)


def test_a_repair_changes_no_text(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    text = 'a\u2028, ]  \\u00e9 "x,}" ,}'
    source.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": text})[:-1].encode() + b",}\r\n")
    done = dataset.repair(source, tmp_path / "repaired.jsonl")
    assert json.loads(done.path.read_bytes()) == {"text": text} and len(done.actions) == 3


def test_a_file_that_needs_no_repair_is_copied_byte_for_byte(tmp_path: Path) -> None:
    done, text = written(tmp_path, "text_emoji_and_escapes.jsonl")
    assert done.actions == () and text == (DATA / "text_emoji_and_escapes.jsonl").read_bytes()


def test_a_repair_that_was_not_asked_for_is_not_made(tmp_path: Path) -> None:
    done = dataset.repair(DATA / "crlf.jsonl", tmp_path / "same.jsonl", repairs=["trailing_commas"])
    assert done.actions == () and b"\r\n" in done.path.read_bytes()


@pytest.mark.parametrize(
    "name", ["gzip.jsonl", "png.jsonl", "array_open.json", "array_then_more.json"]
)
def test_what_cannot_be_repaired_is_refused_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"^file: "):
        written(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_broken_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe{\x00\x00\xd8}\x00")
    with pytest.raises(DatasetError, match="UTF-16"):
        dataset.repair(tmp_path / "rows.jsonl", tmp_path / "repaired.jsonl")


def test_no_file_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "repaired.jsonl").write_text("mine")
    with pytest.raises(FileExistsError):
        written(tmp_path, "crlf.jsonl")
    assert (tmp_path / "repaired.jsonl").read_text() == "mine"


def test_chosen_lines_are_dropped_and_named(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(1, 7)))
    done = dataset.drop_rows(source, tmp_path / "fewer.jsonl", [5, 2, 2])
    assert done.actions == ("2 rows left out: lines 2, 5.",) and done.rows == 4
    assert [json.loads(line)["text"] for line in done.path.read_text().splitlines()] == [
        "1",
        "3",
        "4",
        "6",
    ]


@pytest.mark.parametrize(
    "name", ["messages_wrong.jsonl", "duplicate_key.jsonl", "latin1.jsonl", "array_bad_row.json"]
)
def test_without_its_bad_rows_a_file_is_usable(tmp_path: Path, name: str) -> None:
    done = dataset.drop_bad_rows(DATA / name, tmp_path / "good.jsonl")
    assert (
        dataset.check_file(done.path).is_usable
        and done.rows == dataset.check_file(DATA / name).valid_rows
    )


def test_repeated_rows_are_dropped_but_the_first(tmp_path: Path) -> None:
    done = dataset.drop_duplicates(DATA / "duplicates.jsonl", tmp_path / "once.jsonl")
    assert done.rows == 2 and dataset.check_file(done.path).duplicates == 0


def test_a_column_mapping_is_checked_and_then_written(tmp_path: Path) -> None:
    columns = {"question": "frage", "answer": "antwort"}
    assert dataset.check_file(DATA / "two_columns.jsonl", columns=columns).is_usable
    assert (
        "map frage to question and antwort to answer"
        in dataset.check_file(DATA / "two_columns.jsonl").problems[0].fix
    )
    done = dataset.map_columns(DATA / "two_columns.jsonl", tmp_path / "renamed.jsonl", columns)
    assert (
        dataset.check_file(done.path).row_format == "question and answer"
        and "frage became question" in done.actions[0]
    )


def test_a_kind_chosen_by_hand_is_the_one_that_is_checked() -> None:
    report = dataset.examine(DATA / "messages.jsonl", Wish(kind="text")).report
    assert (
        report.row_format == "text"
        and report.evidence == "chosen by hand"
        and report.problems[0].code == "missing"
    )


@pytest.mark.parametrize(
    "line", ['{"text": "a"', '{"text": "a', '[{"text": "a"}', '{"text": "a"} x', '{"text": "a"}}']
)
def test_a_broken_line_stays_what_it_was_and_so_do_its_neighbours(
    tmp_path: Path, line: str
) -> None:
    lines = ['{"text": "before"}', line, '{"text": "after"}', '{"text": "{"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    done = dataset.repair(tmp_path / "rows.jsonl", tmp_path / "repaired.jsonl")
    assert done.path.read_text().splitlines() == lines and done.actions == ()
