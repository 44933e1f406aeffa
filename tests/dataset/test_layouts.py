"""Files that are not one JSON object a line are read as if they were, and say so."""

import json
from pathlib import Path

import pytest

from core.dataset import check_file
from core.dataset.reading.layout import Layout, Rewind, detect_layout
from core.dataset.reading.text_lines import layout_of
from core.dataset.rewrite import as_lines, drop_bad_rows
from core.dataset.rewrite.repair import write_lines
from core.job import DatasetError
from tests.builders.dataset_files import rows_in, write_json_rows
from tests.builders.paths import DATA

PAIR = {"question": "1 + 1?", "answer": "2"}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MIB = 2**20


def written(tmp_path: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, tmp_path: Path) -> list[object]:
    """Return the rows of a file as the training program gets them."""
    return rows_in(write_lines(path, tmp_path / "lines.jsonl").path)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ({"data": [PAIR, PAIR]}, [PAIR, PAIR]),
        ({"anything": [PAIR], "version": 3}, [PAIR]),
        ({"meta": {"by": "me"}, "Rows": [PAIR]}, [PAIR]),
        ({"train": [PAIR], "validation": [PAIR, PAIR]}, [PAIR]),
        ({"notes": [{"a": 1}], "pairs": [PAIR]}, [PAIR]),
        ({"a": {"b": {"c": [PAIR, PAIR]}}}, [PAIR, PAIR]),
        ({"one": [PAIR], "two": [PAIR, PAIR]}, [PAIR] * 3),
        ({"id 1": PAIR, "id 2": PAIR}, [PAIR, PAIR]),
        ({"id 1": PAIR}, [PAIR]),
        ({"data": {"7": PAIR, "8": PAIR}}, [PAIR, PAIR]),
        ({"data": [MESSAGES, MESSAGES]}, [{"messages": MESSAGES}] * 2),
        ({"chat 1": MESSAGES, "chat 2": MESSAGES}, [{"messages": MESSAGES}] * 2),
        ({"data": ["a", "b"]}, [{"text": "a"}, {"text": "b"}]),
        ({"texts": ["a", "b"]}, [{"text": "a"}, {"text": "b"}]),
        ({"conversations": [{"messages": MESSAGES}]}, [{"messages": MESSAGES}]),
        ({"question": ["1 + 1?", "1 + 1?"], "answer": ["2", "2"]}, [PAIR, PAIR]),
        ({"question": {"0": "1 + 1?", "7": "1 + 1?"}, "answer": {"0": "2", "7": "2"}}, [PAIR] * 2),
        ({"text": {"0": "a", "1": "b"}}, [{"text": "a"}, {"text": "b"}]),
        ([MESSAGES, MESSAGES], [{"messages": MESSAGES}] * 2),
        (MESSAGES, [{"messages": MESSAGES}]),
        (["a", "b"], [{"text": "a"}, {"text": "b"}]),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_are_found_wherever_they_are(
    tmp_path: Path, content: object, rows: list[object], indent: int | None
) -> None:
    path = written(tmp_path, json.dumps(content, indent=indent))
    assert check_file(path).valid_rows == len(rows)
    assert read(path, tmp_path) == rows


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]},
        PAIR,
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_of_one_row_is_that_row(
    tmp_path: Path, row: dict[str, object], indent: int | None
) -> None:
    path = written(tmp_path, json.dumps(row, indent=indent))
    assert read(path, tmp_path) == [row]


def test_several_lists_of_different_rows_are_named_and_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"users": [{"a": 1}], "posts": [{"b": 2}]}))
    (problem,) = check_file(path).problems
    assert "users, posts" in problem.message
    with pytest.raises(DatasetError, match="users, posts"):
        write_lines(path, tmp_path / "lines.jsonl")


def test_a_list_beside_other_keys_says_what_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"version": 1, "train": [PAIR], "test": [PAIR]}))
    assert any(note.endswith("not read: version, test.") for note in check_file(path).notes)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_conversation_a_line_is_a_row_a_line(tmp_path: Path, ends: str) -> None:
    path = written(tmp_path, (json.dumps(MESSAGES) + ends) * 3, "rows.jsonl")
    assert read(path, tmp_path) == [{"messages": MESSAGES}] * 3


def test_an_object_over_lines_counts_as_the_line_it_begins_on(tmp_path: Path) -> None:
    rows = [PAIR, {"question": "2 + 2?", "answer": 4}, PAIR]
    path = written(tmp_path, "\n".join(json.dumps(row, indent=1) for row in rows))
    report = check_file(path)
    assert [problem.line for problem in report.problems] == [5]
    assert rows_in(drop_bad_rows(path, tmp_path / "good.jsonl").path) == [PAIR, PAIR]


def test_lines_for_the_preview_keep_their_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "\n".join(json.dumps(PAIR, indent=1) for _ in range(3)))
    lines = as_lines(path, tmp_path / "lines.jsonl").read_text().splitlines()
    assert [number for number, line in enumerate(lines, start=1) if line] == [1, 5, 9]


def test_an_object_over_lines_among_others_is_offered_a_repair(tmp_path: Path) -> None:
    lines = [json.dumps(PAIR), json.dumps(PAIR, indent=1), json.dumps(PAIR)]
    report = check_file(written(tmp_path, "\n".join(lines), "rows.jsonl"))
    assert report.repairs == ("objects",)
    assert any("several lines" in note for note in report.notes)


def test_lists_of_anything_else_are_named_line_by_line(tmp_path: Path) -> None:
    report = check_file(written(tmp_path, '["a", "b"]\n["c"]\n', "rows.jsonl"))
    assert [(each.line, each.code) for each in report.problems] == [
        (1, "not_object"),
        (2, "not_object"),
    ]


def test_commas_before_brackets_of_an_object_over_lines_are_one_problem(tmp_path: Path) -> None:
    path = written(tmp_path, '{\n "question": "a",\n "answer": "b",\n}\n')
    report = check_file(path)
    assert [(each.line, each.code) for each in report.problems] == [(1, "trailing_comma")]
    assert report.repairs == ("trailing_commas", "objects")


def test_a_list_in_a_file_too_large_to_parse_is_found(tmp_path: Path) -> None:
    rows = [{"question": "q" * 1000, "answer": str(number)} for number in range(9_000)]
    path = written(tmp_path, json.dumps({"version": 1, "data": rows}, indent=1))
    assert path.stat().st_size > 8 * MIB
    assert check_file(path).valid_rows == len(rows)


def test_the_first_line_of_a_jsonl_file_may_be_broken_or_very_long(tmp_path: Path) -> None:
    for first in ('{"question": "a', '{"question": {', '{"x": "' + "a" * 9 * MIB + '"}'):
        path = written(tmp_path, first + "\n" + json.dumps(PAIR) + "\n", "rows.jsonl")
        assert [problem.line for problem in check_file(path).problems] == [1]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{", b"[", b"{}", b"[]", b"{}\n{}", b'{"a":', b"{" * 5000, b'{"a":' * 5000],
)
def test_odd_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    report = check_file(written(tmp_path, content))
    assert not report.is_usable
    assert report.problems[0].fix


def layout_of_bytes(content: bytes, suffix: str) -> Layout:
    import io

    rewind: Rewind = lambda: io.BytesIO(content)  # noqa: E731
    return detect_layout(rewind, suffix)


@pytest.mark.parametrize(
    ("content", "suffix", "kind"),
    [
        (b'{"text": "a"}\n', ".txt", "lines"),
        (b"{'text': 'a'}\n", ".txt", "lines"),
        (b'[{"text": "a"}]', ".txt", "elements"),
        (b"[Music] A song.\n", ".txt", "text"),
        (b"[A link](there) to it\n", ".md", "text"),
        (b'"Stop," she said.\n', ".txt", "text"),
        (b'"one"\n"two"\n', ".txt", "lines"),
        (b"{curly} text\n", ".md", "text"),
        (b"\xef\xbb\xbfChapter one\n", ".txt", "text"),
    ],
)
def test_a_text_file_is_text_unless_it_holds_json(content: bytes, suffix: str, kind: str) -> None:
    assert layout_of_bytes(content, suffix).kind == kind


@pytest.mark.parametrize("name", ["notes.log", "notes.rst", "notes", "notes.jsonl", "notes.json"])
def test_plain_text_under_another_name_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "[12:00] one\ntwo, three\n\nfour\n" * 100, name)
    for stage in ("sft", "cpt", "dpo"):
        (problem,) = check_file(path, stage).problems
        assert problem.code == "stray_text"
        assert ".txt" in problem.fix


def test_plain_text_is_for_one_stage_only(tmp_path: Path) -> None:
    path = written(tmp_path, "one\n\ntwo\n", "book.txt")
    assert check_file(path, "cpt").is_usable
    (problem,) = check_file(path, "sft").problems
    assert "stage cpt" in problem.fix


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("one\ntwo\n\n\nthree\n", ["one\ntwo", "three"]),
        ("one\r\ntwo\r\n \r\nthree", ["one\ntwo", "three"]),
        ("one\ntwo\n", ["one\ntwo"]),
        (f"{'long ' * 60}\n{'text ' * 60}\n", ["long " * 60, "text " * 60]),
        ("short\n" * 3000, ["short"] * 3000),
        ("\ufeffone\n\n\x1ctwo", ["one", "\x1ctwo"]),
    ],
)
def test_a_text_is_split_as_its_lines_suggest(
    tmp_path: Path, content: str, texts: list[str]
) -> None:
    path = written(tmp_path, content, "book.txt")
    assert [row["text"].rstrip() for row in map(dict, read(path, tmp_path))] == [
        text.rstrip() for text in texts
    ]


def test_a_part_of_a_text_counts_as_its_first_line(tmp_path: Path) -> None:
    path = written(tmp_path, b"one\n\n\ntwo\nnot \xff UTF-8\n\nthree\n\n\0\n", "book.txt")
    report = check_file(path, "cpt")
    assert [(each.line, each.code) for each in report.problems] == [(4, "not_utf8"), (9, "nul")]
    assert report.valid_rows == 2


def test_a_paragraph_of_10_megabytes_is_too_long(tmp_path: Path) -> None:
    path = written(tmp_path, "one\n\n" + "words\n" * 2_000_000 + "\nthree\n", "book.txt")
    report = check_file(path, "cpt")
    assert [(each.line, each.code) for each in report.problems] == [(3, "line_too_long")]


def test_a_usual_file_keeps_its_layout() -> None:
    assert layout_of(DATA / "messages.jsonl").is_usual


def test_an_evaluation_file_of_another_layout_is_compared(tmp_path: Path) -> None:
    train = write_json_rows(tmp_path / "train.jsonl", [PAIR])
    held_out = written(tmp_path, '{"data": [' + json.dumps(PAIR) + "]}")
    assert check_file(train, eval_path=held_out).leaked == 1
