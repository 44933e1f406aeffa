"""Repairs write a new file, say what they did, and leave every text as it was."""

import json
from pathlib import Path

import pytest

from core.dataset import check_file
from core.dataset.rewrite import Written, drop_bad_rows, keep_wanted, map_columns, repair
from core.dataset.rewrite.repair import drop_rows
from core.job import DatasetError
from tests.builders.dataset_files import rows_in, write_json_rows
from tests.builders.paths import DATA


def repaired(tmp_path: Path, name: str) -> Written:
    """Repair a file of tests/data."""
    return repair(DATA / name, tmp_path / "repaired.jsonl")


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
        ("pretty_object.jsonl", "1 object"),
        ("pretty_objects_several.json", "2 objects"),
        ("two_on_a_line.jsonl", "2 objects"),
        ("rows_under_data.json", "2 rows"),
        ("rows_by_id.json", "2 rows"),
        ("rows_by_topic.json", "3 rows"),
        ("conversations_by_line.jsonl", "2 rows"),
        ("one_conversation.json", "1 row"),
        ("json_strings.jsonl", "2 rows"),
        ("tale.txt", "3 rows of the plain text"),
    ],
)
def test_a_repair_makes_the_file_usable_and_says_what_it_did(
    tmp_path: Path, name: str, says: str
) -> None:
    done = repaired(tmp_path, name)
    report = check_file(done.path)
    assert report.is_usable
    assert report.repairs == ()
    assert done.rows == report.rows
    assert any(says in action for action in done.actions)


def test_a_repair_changes_no_text(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    text = 'a\u2028, ]  \\u00e9 "x,}" ,}'
    source.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": text})[:-1].encode() + b",}\r\n")
    done = repair(source, tmp_path / "repaired.jsonl")
    assert rows_in(done.path) == [{"text": text}]
    assert len(done.actions) == 3


def test_a_file_that_needs_no_repair_is_copied_byte_for_byte(tmp_path: Path) -> None:
    name = "text_emoji_and_escapes.jsonl"
    done = repaired(tmp_path, name)
    assert done.actions == ()
    assert done.path.read_bytes() == (DATA / name).read_bytes()


def test_a_repair_that_was_not_asked_for_is_not_made(tmp_path: Path) -> None:
    done = repair(DATA / "crlf.jsonl", tmp_path / "same.jsonl", repairs=["trailing_commas"])
    assert done.actions == ()
    assert b"\r\n" in done.path.read_bytes()


@pytest.mark.parametrize(
    "name", ["gzip.jsonl", "png.jsonl", "array_open.json", "array_then_more.json"]
)
def test_a_file_beyond_repair_is_refused_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"^file: "):
        repaired(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_broken_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe{\x00\x00\xd8}\x00")
    with pytest.raises(DatasetError, match="UTF-16"):
        repair(tmp_path / "rows.jsonl", tmp_path / "repaired.jsonl")


def test_no_file_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "repaired.jsonl").write_text("mine")
    with pytest.raises(FileExistsError):
        repaired(tmp_path, "crlf.jsonl")
    assert (tmp_path / "repaired.jsonl").read_text() == "mine"


def test_chosen_lines_are_dropped_and_named(tmp_path: Path) -> None:
    source = write_json_rows(tmp_path / "rows.jsonl", ({"text": n} for n in range(1, 7)))
    done = drop_rows(source, tmp_path / "fewer.jsonl", [5, 2, 2])
    assert done.actions == ("2 rows left out: lines 2, 5.",)
    assert done.rows == 4
    assert [row["text"] for row in rows_in(done.path)] == [1, 3, 4, 6]


def test_unwanted_rows_are_dropped_and_named(tmp_path: Path) -> None:
    labels = [True, False, 1, "true", "0", None]
    rows = ({"text": n, "label": label} for n, label in enumerate(labels, 1))
    source = write_json_rows(tmp_path / "rows.jsonl", rows)
    done = keep_wanted(source, tmp_path / "fewer.jsonl")
    assert done.actions == ("2 rows left out: lines 2, 5.",)
    assert done.rows == 4
    assert [row["text"] for row in rows_in(done.path)] == [1, 3, 4, 6]


@pytest.mark.parametrize(
    "name", ["messages_wrong.jsonl", "duplicate_key.jsonl", "latin1.jsonl", "array_bad_row.json"]
)
def test_without_its_bad_rows_a_file_is_usable(tmp_path: Path, name: str) -> None:
    done = drop_bad_rows(DATA / name, tmp_path / "good.jsonl")
    assert check_file(done.path).is_usable
    assert done.rows == check_file(DATA / name).valid_rows


def test_unknown_columns_offer_a_mapping_that_can_be_written(tmp_path: Path) -> None:
    source = DATA / "two_columns.jsonl"
    report = check_file(source)
    assert "map frage to question and antwort to answer" in report.problems[0].fix
    done = map_columns(source, tmp_path / "renamed.jsonl", report.suggestion)
    assert check_file(done.path).row_format == "question and answer"
    assert "frage became question" in done.actions[0]


@pytest.mark.parametrize(
    "line", ['{"text": "a"', '{"text": "a', '[{"text": "a"}', '{"text": "a"} x', '{"text": "a"}}']
)
def test_a_broken_line_and_its_neighbours_stay_as_they_were(tmp_path: Path, line: str) -> None:
    lines = ['{"text": "before"}', line, '{"text": "after"}', '{"text": "{"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    done = repair(tmp_path / "rows.jsonl", tmp_path / "repaired.jsonl")
    assert done.path.read_text().splitlines() == lines
    assert done.actions == ()
