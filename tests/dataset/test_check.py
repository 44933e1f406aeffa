"""What `check` makes of files: their type, and every row that cannot be trained on, by line."""

import hashlib
import json
from pathlib import Path

import pytest

from core import dataset
from core.dataset import DatasetReport
from core.job import DatasetError
from core.training.contract.files import sha256_of
from core.training.contract.row_formats import ROW_FORMATS, RowFormat, accepts

CHAT = (
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
)
ASKED, SAID, OTHER = (
    {"role": role, "content": content}
    for role, content in (("user", "Hi"), ("assistant", "a"), ("assistant", "b"))
)


def checked(tmp_path: Path, *lines: str | bytes) -> DatasetReport:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    )
    return dataset.check_file(file)


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
def test_the_type_is_read_off_the_columns(
    tmp_path: Path, row: str, dataset_type: str, format: str
) -> None:
    report = checked(tmp_path, row, row)
    assert report.is_usable and report.rows == report.valid_rows == 2
    assert (report.dataset_type, report.format) == (dataset_type, format)


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ('{"messages": [', "truncated", "column"),
        ("[1, 2]", "not_object", "must be an object"),
        ('{"messages": []}', "empty", "no messages"),
        ('{"messages": "Hi"}', "wrong_kind", "a list of messages"),
        ('{"messages": [{"role": "wizard", "content": "Hi"}]}', "unknown_role", "wizard"),
        ('{"messages": [{"role": "user", "content": 7}]}', "wrong_kind", "not text"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "no_answer", "assistant"),
        ('{"messages": ["Hi"]}', "not_message", "not a message"),
        ('{"text": "another type"}', "missing", "is missing"),
        (CHAT.replace('"Hello"', "NaN"), "nan", "NaN"),
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
    assert (report.rows, report.problems[0].line, report.problems[0].code) == (
        3,
        2,
        "line_too_long",
    )


def test_unknown_columns_name_the_known_ones(tmp_path: Path) -> None:
    assert "question + answer" in str(checked(tmp_path, '{"foo": 1}').problems[0])


def test_the_report_is_json(tmp_path: Path) -> None:
    printed = json.loads(json.dumps(checked(tmp_path, CHAT, "{").to_json()))
    assert printed.keys() >= {
        "rows",
        "valid_rows",
        "dataset_type",
        "format",
        "columns",
        "num_problems",
        "problems",
    }


@pytest.mark.parametrize(
    ("lines", "evidence"),
    [
        ([CHAT], "messages in the only row"),
        ([CHAT] * 3, "messages in all 3 rows"),
        ([CHAT] * 1200, "messages in all of the first 1,000 rows"),
        ([CHAT, '{"text": "a"}', CHAT], "messages in 2 of 3 rows"),
        (['{"a": 1}', '{"b": 1}'], "none of 2 rows has the columns of a known format"),
        (['{"a": 1}', '{"question": "a", "answer": "b"}'], "question and answer in 1 of 2 rows"),
    ],
)
def test_the_kind_comes_with_its_evidence(tmp_path: Path, lines: list[str], evidence: str) -> None:
    assert checked(tmp_path, *lines).evidence == evidence


def test_a_report_survives_its_own_json(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT, CHAT, "{")
    assert DatasetReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_the_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT)
    assert report.sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()


def test_the_summary_counts_problems_and_warnings(tmp_path: Path) -> None:
    assert (
        checked(tmp_path, CHAT, CHAT, "{").summary() == "3 rows · messages · 1 problem · 1 warning"
    )


def test_a_late_change_of_type_names_the_first_line_of_each(tmp_path: Path) -> None:
    chat = '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}'
    report = checked(tmp_path, *['{"prompt": "a", "completion": "b"}'] * 3, chat, chat)
    assert [problem.line for problem in report.problems] == [4, 5]
    assert "messages (first in line 4), but text from line 1 on" in report.problems[1].message


def test_warnings_are_listed_twenty_of_a_code_and_all_counted(tmp_path: Path) -> None:
    report = checked(tmp_path, *[CHAT] * 50, CHAT.replace("Hello", "</s>"))
    assert (report.num_warnings, report.duplicates, report.counts["special_token"]) == (50, 49, 1)
    assert [warning.code for warning in report.warnings].count("duplicate") == 20 and len(
        report.warnings
    ) == 21


@pytest.mark.parametrize(
    ("columns", "stage", "mapping"),
    [
        (("Frage", "Antwort"), "sft", {"question": "Frage", "answer": "Antwort"}),
        (("id", "Query", "Response", "source"), "sft", {"question": "Query", "answer": "Response"}),
        (("input", "output"), "sft", {"question": "input", "answer": "output"}),
        (("questions", "anwser", "n"), "sft", {"question": "questions", "answer": "anwser"}),
        (("id", "conversation"), "sft", {"messages": "conversation"}),
        (("url", "title", "content"), "sft", {"text": "content"}),
        (
            ("question", "better", "worse"),
            "dpo",
            {"prompt": "question", "chosen": "better", "rejected": "worse"},
        ),
        (("a", "b", "c"), "sft", {}),
    ],
)
def test_columns_that_are_not_known_come_with_a_mapping_where_names_speak_for_one(
    tmp_path: Path, columns: tuple[str, ...], stage: str, mapping: dict[str, str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict.fromkeys(columns, "a")))
    report = dataset.check_file(tmp_path / "rows.jsonl", stage)
    assert report.found_columns == columns and report.suggestion == mapping and not report.is_usable


def test_a_suggested_mapping_makes_the_file_usable(tmp_path: Path) -> None:
    report = checked(
        tmp_path, '{"Query": "1 + 1", "Response": "2", "n": 9223372036854775808}', "{", ""
    )
    done = dataset.map_columns(
        tmp_path / "rows.jsonl", tmp_path / "mapped.jsonl", report.suggestion
    )
    assert dataset.check_file(done.path).is_usable and done.rows == 1
    assert done.actions == (
        "Columns: Query became question, Response became answer; all others were left out.",
        "1 line without a row left out.",
    )


def test_a_mapping_must_name_every_column_of_its_kind(tmp_path: Path) -> None:
    checked(tmp_path, '{"a": "1"}')
    with pytest.raises(DatasetError, match="need completion"):
        dataset.map_columns(
            tmp_path / "rows.jsonl", tmp_path / "b.jsonl", {"prompt": "a"}, "prompt and completion"
        )


def test_the_hash_of_a_file_is_that_of_its_report(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT)
    assert sha256_of(tmp_path / "rows.jsonl") == report.sha256
    (tmp_path / "rows.jsonl").write_text(CHAT)
    assert sha256_of(tmp_path / "rows.jsonl") != report.sha256


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "code"),
    [
        ([SAID], [OTHER], "rejected", "no_shared_prompt"),
        ([ASKED, SAID], [SAID], "rejected", "no_shared_prompt"),
        ([ASKED, SAID], [ASKED, OTHER], "", ""),
        ("Hi\n", "Hi there", "chosen", "empty"),
        ("Yes. No", "Yes. ", "rejected", "empty"),
        ("Hi a", "Hi there", "", ""),
        ("a", "b", "", ""),
    ],
)
def test_a_prompt_that_both_answers_begin_with_leaves_an_answer_of_each(
    tmp_path: Path, chosen: object, rejected: object, field: str, code: str
) -> None:
    row = json.dumps({"chosen": chosen, "rejected": rejected})
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    found = [
        (problem.field, problem.code)
        for problem in dataset.check_file(tmp_path / "rows.jsonl", "dpo").problems
    ]
    assert found == ([(field, code)] if code else [])


@pytest.mark.parametrize("row_format", ROW_FORMATS, ids=lambda row_format: row_format.id)
def test_rows_of_every_format_have_a_usual_stage(row_format: RowFormat) -> None:
    assert accepts(dataset.USUAL_STAGES[row_format.dataset_type], row_format)


def test_tools_are_refused_where_answers_are_drawn(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = ({"prompt": "a", "tools": each} for each in (None, tools, []))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (problem,) = dataset.check_file(tmp_path / "rows.jsonl", "grpo").problems
    assert (problem.line, problem.field, problem.code) == (2, "tools", "tools_unused")
