"""Mapping of columns: what people may write, and what becomes of the file."""

import json
from pathlib import Path

import pytest

from core.dataset import check_file
from core.dataset.rewrite import map_columns, parse_mapping
from core.job import DatasetError
from tests.builders.dataset_files import rows_in, write_json_rows, write_lines_of


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("question=Frage,answer=Antwort", {"question": "Frage", "answer": "Antwort"}),
        (" question = User Query , answer=a=b", {"question": "User Query", "answer": "a=b"}),
        ("question=What, who, when,answer=B", {"question": "What, who, when", "answer": "B"}),
        (
            '{"question": "a=b, answer=c", "answer": "d"}',
            {"question": "a=b, answer=c", "answer": "d"},
        ),
        ("text=質問1", {"text": "質問1"}),
    ],
)
def test_a_mapping_is_read(text: str, mapping: dict[str, str]) -> None:
    assert parse_mapping(text) == mapping


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("question", "names no column"),
        ("question=", "question= names no column"),
        ("question=a,question=b", "twice"),
        ("qestion=a", "no column that Tailor reads; use .*question"),
        ("Frage=question", "write question=Frage"),
        ("{", "not JSON"),
        ("{}", "not an object of names"),
        ('{"question": 7}', "not an object of names"),
    ],
)
def test_a_mapping_that_cannot_be_read_is_a_sentence(text: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        parse_mapping(text)


def test_a_column_that_the_file_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    source = write_json_rows(tmp_path / "rows.jsonl", [{"a": "1", "b": "2"}])
    with pytest.raises(DatasetError, match="no column 'c'; it has a, b"):
        map_columns(source, tmp_path / "mapped.jsonl", {"text": "c"})


def test_columns_that_are_not_mapped_are_named_and_stay(tmp_path: Path) -> None:
    source = write_json_rows(tmp_path / "rows.jsonl", [{"a": "1"}, {"a": "2", "b": "3", "c": 4}])
    done = map_columns(source, tmp_path / "mapped.jsonl", {"text": "a"})
    assert done.actions == ("Columns: a became text; not mapped: b, c.",)
    assert rows_in(done.path) == [{"text": "1"}, {"text": "2", "b": "3", "c": 4}]


def test_bad_lines_may_stay_where_they_are(tmp_path: Path) -> None:
    row = json.dumps({"a": "1"})
    source = write_lines_of(tmp_path / "rows.jsonl", [row, "", "{", row])
    done = map_columns(source, tmp_path / "b.jsonl", {"text": "a"}, keeps_bad_lines=True)
    mapped = '{"text": "1"}'
    assert done.path.read_text().splitlines() == [mapped, "", "{", mapped]


def test_a_column_that_is_not_mapped_is_not_read_by_its_name(tmp_path: Path) -> None:
    row = {"Frage": "2 + 2?", "Antwort": "4", "input": "two and two", "persona": "You count well."}
    source = write_json_rows(tmp_path / "rows.jsonl", [row])
    mapping = {"question": "Frage", "answer": "Antwort"}
    done = map_columns(source, tmp_path / "mapped.jsonl", mapping)
    report = check_file(done.path)
    found = [(each.field, each.changes_learning) for each in report.not_read]
    assert found == [("input (not mapped)", True), ("persona", True)]


def test_more_columns_than_can_be_read_may_be_mapped(tmp_path: Path) -> None:
    row = {f"c{number}": "a b" for number in range(100)}
    source = write_json_rows(tmp_path / "rows.jsonl", [row])
    done = map_columns(source, tmp_path / "mapped.jsonl", {"question": "c0", "answer": "c99"})
    assert check_file(done.path).problems == ()
