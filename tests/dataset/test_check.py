"""Reports of the check: the row format, and every row that cannot be trained on, by line."""

import hashlib
import json
from pathlib import Path

import pytest

from core.dataset import DatasetReport, NotRead, check_file
from core.dataset.formats import USUAL_STAGES
from core.dataset.rewrite import map_columns
from core.job import DatasetError, JobSpec
from core.training.contract.row_formats import ROW_FORMATS, RowFormat, accepts
from core.training.contract.row_reader import read_row
from tests.builders.dataset_files import CHAT_LINE, write_json_rows, write_lines_of

ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}


def checked(tmp_path: Path, *lines: str | bytes, stage: str = "sft") -> DatasetReport:
    return check_file(write_lines_of(tmp_path / "rows.jsonl", lines), stage)


@pytest.mark.parametrize(
    ("row", "dataset_type", "format"),
    [
        (CHAT_LINE, "language modeling", "conversational"),
        ('{"prompt": "Hi", "completion": "Hello"}', "prompt-completion", "standard"),
        ('{"instruction": "Add", "input": "1 1", "output": "2"}', "prompt-completion", "standard"),
        ('{"question": "1 + 1?", "answer": "2"}', "prompt-completion", "standard"),
        ('{"text": "Once upon a time"}', "language modeling", "standard"),
    ],
)
def test_the_columns_tell_the_dataset_type(
    tmp_path: Path, row: str, dataset_type: str, format: str
) -> None:
    report = checked(tmp_path, row, row)
    assert report.is_usable
    assert report.valid_rows == 2
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
        (CHAT_LINE.replace('"Hello"', "NaN"), "nan", "NaN"),
        (b'{"messages": "\xff"}', "not_utf8", "byte 15"),
        ("[" * 100_000, "too_deep", "nested"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, code: str, says: str) -> None:
    report = checked(tmp_path, CHAT_LINE, line, CHAT_LINE)
    (problem,) = report.problems
    assert (report.rows, report.valid_rows) == (3, 2)
    assert (problem.line, problem.code) == (2, code)
    assert says in str(problem)


def test_all_problems_are_counted_and_a_hundred_listed(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT_LINE, *["{"] * 250)
    assert report.num_problems == 250
    assert len(report.problems) == 100


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT_LINE, "", "   ", "{")
    assert report.rows == 2
    assert report.problems[0].line == 4


@pytest.mark.parametrize("lines", [(), ("", "")])
def test_a_file_without_rows_is_not_usable(tmp_path: Path, lines: tuple[str, ...]) -> None:
    report = checked(tmp_path, *lines)
    assert not report.is_usable
    assert report.problems[0].code == "no_rows"


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert checked(tmp_path, b"\xef\xbb\xbf" + CHAT_LINE.encode()).is_usable


def test_a_line_of_10_megabytes_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT_LINE, '{"text": "' + "a" * 10 * 2**20 + '"}', CHAT_LINE)
    assert report.rows == 3
    assert (report.problems[0].line, report.problems[0].code) == (2, "line_too_long")


def test_unknown_columns_name_the_known_ones(tmp_path: Path) -> None:
    assert "question + answer" in str(checked(tmp_path, '{"foo": 1}').problems[0])


def test_unknown_columns_name_only_those_that_the_stage_reads(tmp_path: Path) -> None:
    fix = checked(tmp_path, '{"foo": 1}', stage="dpo").problems[0].fix
    assert fix == "use one of: prompt + chosen + rejected, chosen + rejected"


def test_the_report_is_json(tmp_path: Path) -> None:
    printed = json.loads(json.dumps(checked(tmp_path, CHAT_LINE, "{").to_json()))
    assert printed.keys() >= {
        "rows",
        "valid_rows",
        "dataset_type",
        "format",
        "kind",
        "columns",
        "num_problems",
        "problems",
    }


@pytest.mark.parametrize(
    ("lines", "evidence"),
    [
        ([CHAT_LINE], "messages in the only row"),
        ([CHAT_LINE] * 3, "messages in all 3 rows"),
        ([CHAT_LINE] * 1200, "messages in all of the first 1,000 rows"),
        ([CHAT_LINE, '{"text": "a"}', CHAT_LINE], "messages in 2 of 3 rows"),
        (['{"a": 1}', '{"b": 1}'], "none of 2 rows has the columns of a known format"),
        (['{"a": 1}', '{"question": "a", "answer": "b"}'], "question and answer in 1 of 2 rows"),
    ],
)
def test_the_row_format_comes_with_its_evidence(
    tmp_path: Path, lines: list[str], evidence: str
) -> None:
    assert checked(tmp_path, *lines).evidence == evidence


def test_a_report_survives_its_own_json(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT_LINE, CHAT_LINE, "{")
    assert DatasetReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_what_is_not_read_survives_json() -> None:
    report = DatasetReport(not_read=(NotRead("images", 2, 1, True), NotRead("id", 3, 1, False)))
    assert DatasetReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_only_what_changes_learning_needs_consent() -> None:
    images, id = NotRead("images", 2, 1, True), NotRead("id", 3, 1, False)
    assert DatasetReport(not_read=(id, images)).needs_consent == (images,)


def test_the_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT_LINE)
    assert report.sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()


def test_the_summary_counts_problems_and_warnings(tmp_path: Path) -> None:
    report = checked(tmp_path, CHAT_LINE, CHAT_LINE, "{")
    assert report.summary() == "3 rows · messages · 1 problem · 1 warning"


def test_a_late_change_of_format_names_the_first_line_of_each(tmp_path: Path) -> None:
    chat = '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}'
    report = checked(tmp_path, *['{"prompt": "a", "completion": "b"}'] * 3, chat, chat)
    assert [problem.line for problem in report.problems] == [4, 5]
    assert "messages (first in line 4), but text from line 1 on" in report.problems[1].message


def test_all_warnings_are_counted_and_twenty_of_a_code_listed(tmp_path: Path) -> None:
    report = checked(tmp_path, *[CHAT_LINE] * 50, CHAT_LINE.replace("Hello", "</s>"))
    codes = [warning.code for warning in report.warnings]
    assert report.counts == {"duplicate": 49, "special_token": 1}
    assert report.num_warnings == 50
    assert codes == ["duplicate"] * 20 + ["special_token"]


@pytest.mark.parametrize(
    ("columns", "stage", "mapping"),
    [
        (("Frage", "Antwort"), "sft", {"question": "Frage", "answer": "Antwort"}),
        (("id", "Query", "Response", "source"), "sft", {"question": "Query", "answer": "Response"}),
        (("input", "output"), "sft", {"question": "input", "answer": "output"}),
        (("questions", "anwser", "n"), "sft", {"question": "questions", "answer": "anwser"}),
        (("url", "title", "content"), "sft", {"text": "content"}),
        (
            ("question", "better", "worse"),
            "dpo",
            {"prompt": "question", "chosen": "better", "rejected": "worse"},
        ),
        (("a", "b", "c"), "sft", {}),
    ],
)
def test_a_mapping_of_unknown_columns_is_suggested(
    tmp_path: Path, columns: tuple[str, ...], stage: str, mapping: dict[str, str]
) -> None:
    report = checked(tmp_path, json.dumps(dict.fromkeys(columns, "a")), stage=stage)
    assert report.found_columns == columns
    assert report.suggestion == mapping
    assert not report.is_usable


def test_a_suggested_mapping_makes_the_file_usable(tmp_path: Path) -> None:
    row = '{"Query": "1 + 1", "Response": "2", "n": 9223372036854775808}'
    report = checked(tmp_path, row, "{", "")
    done = map_columns(tmp_path / "rows.jsonl", tmp_path / "mapped.jsonl", report.suggestion)
    assert check_file(done.path).is_usable
    assert done.rows == 1
    assert done.actions == (
        "Columns: Query became question, Response became answer; not mapped: n.",
        "1 line without a row left out.",
    )


def test_a_mapping_must_name_every_column_of_its_format(tmp_path: Path) -> None:
    checked(tmp_path, '{"a": "1"}')
    source, target = tmp_path / "rows.jsonl", tmp_path / "b.jsonl"
    with pytest.raises(DatasetError, match="need completion"):
        map_columns(source, target, {"prompt": "a"}, "prompt and completion")


@pytest.mark.parametrize(
    ("chosen", "rejected", "found"),
    [
        ([SAID], [OTHER], [("rejected", "no_shared_prompt")]),
        ([ASKED, SAID], [SAID], [("rejected", "no_shared_prompt")]),
        ([ASKED, SAID], [ASKED, OTHER], []),
        ("Hi\n", "Hi there", [("chosen", "empty")]),
        ("Yes. No", "Yes. ", [("rejected", "empty")]),
        ("Hi a", "Hi there", []),
        ("a", "b", []),
    ],
)
def test_answers_that_begin_with_their_prompt_differ_after_it(
    tmp_path: Path, chosen: object, rejected: object, found: list[tuple[str, str]]
) -> None:
    row = json.dumps({"chosen": chosen, "rejected": rejected})
    problems = checked(tmp_path, row, stage="dpo").problems
    assert [(problem.field, problem.code) for problem in problems] == found


@pytest.mark.parametrize("row_format", ROW_FORMATS, ids=lambda row_format: row_format.id)
def test_rows_of_every_format_have_a_usual_stage(row_format: RowFormat) -> None:
    assert accepts(USUAL_STAGES[row_format.dataset_type], row_format)


def test_tools_are_refused_where_the_model_generates_answers(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [{"prompt": "a", "tools": each} for each in (None, tools, [])]
    path = write_json_rows(tmp_path / "rows.jsonl", rows)
    (problem,) = check_file(path, "grpo").problems
    assert (problem.line, problem.field, problem.code) == (2, "tools", "tools_unused")


def test_the_same_problem_is_one_group_with_its_lines(tmp_path: Path) -> None:
    bad = '{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": 8}]}'
    report = checked(tmp_path, CHAT_LINE, *[bad] * 120, "{")
    same, other = report.problem_groups
    assert (same.num_rows, same.lines) == (120, tuple(range(2, 12)))
    assert str(same).startswith("120 rows (lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 110 more), ")
    assert "messages[].content: is a number" in str(same)
    assert str(other).startswith("line 122, row: not JSON")


def test_sentences_that_differ_in_more_than_numbers_are_told_apart(tmp_path: Path) -> None:
    rows = [CHAT_LINE.replace("user", name) for name in ("Fred", "Anna", "Fred")]
    lines = [group.lines for group in checked(tmp_path, CHAT_LINE, *rows).problem_groups]
    assert lines == [(2, 4), (3,)]


def test_repeated_warnings_are_one_group(tmp_path: Path) -> None:
    (group,) = checked(tmp_path, *[CHAT_LINE] * 50).warning_groups
    assert (group.first.code, group.num_rows) == ("duplicate", 49)


def test_further_columns_that_are_read_are_named(tmp_path: Path) -> None:
    row = {"question": "Who?", "answer": "Pip.", "system": "Be brief.", "context": "", "id": 1}
    report = checked(tmp_path, json.dumps(row))
    assert report.summary() == "1 row · question + answer with system · no problems"


def test_it_is_said_once_that_only_text_is_learnt(tmp_path: Path) -> None:
    rows = ['{"text": "<image> A duck.", "image": "duck.png"}'] * 3
    notes = checked(tmp_path, *rows).notes
    assert [note for note in notes if note.startswith("Only text is learnt")] == [
        "Only text is learnt: the model sees no pictures, sound or video."
    ]


# Consent


IMAGES = NotRead("images", 2, 1, True)


def test_what_changes_learning_refuses_a_start_by_name() -> None:
    report = DatasetReport(rows=2, valid_rows=2, not_read=(IMAGES, NotRead("id", 2, 1, False)))
    (problem,) = report.refusals(JobSpec(), "dataset", "a.jsonl")
    assert "images (2 rows, first on line 1)" in problem.problem
    assert problem.fix.endswith("train without it: --accept-unread")


def test_the_page_names_its_own_button_for_consent() -> None:
    report = DatasetReport(rows=2, valid_rows=2, not_read=(IMAGES,))
    (problem,) = report.refusals(JobSpec(), "dataset", "a.jsonl", "press `Train without it`")
    assert problem.fix.endswith("train without it: press `Train without it`")


def test_a_start_with_consent_is_not_refused() -> None:
    report = DatasetReport(rows=2, valid_rows=2, not_read=(IMAGES,))
    assert report.refusals(JobSpec(accept_unread=True), "dataset", "a.jsonl") == ()


@pytest.mark.parametrize(
    ("reward", "right_answers", "is_refused"),
    [
        ("exact_match", 0, True),
        ("exact_match", 1, True),
        ("exact_match", 2, False),
        ("json", 0, False),
    ],
)
def test_a_reward_needs_its_right_answers(
    reward: str, right_answers: int, is_refused: bool
) -> None:
    report = DatasetReport(rows=2, valid_rows=2, right_answers=right_answers)
    job = JobSpec.parse({"stage": "grpo", "reward_functions": reward})
    assert bool(report.refusals(job, "dataset", "a.jsonl")) == is_refused


def test_rows_with_right_answers_are_counted(tmp_path: Path) -> None:
    rows = ['{"prompt": "a", "target": 7}', '{"prompt": "b"}']
    assert checked(tmp_path, *rows, stage="grpo").right_answers == 1


@pytest.mark.parametrize(
    ("more", "expected", "left_out"),
    [
        ({"solution": "by hand"}, "4", "solution"),
        ({"ground_truth": "four"}, "four", "answer"),
        ({"metadata": {"solution": "by hand"}}, "4", "metadata"),
    ],
)
def test_the_likeliest_column_is_the_right_answer(
    tmp_path: Path, more: dict[str, object], expected: str, left_out: str
) -> None:
    row = json.dumps({"question": "2 + 2?", "answer": "4", **more})
    assert read_row(row.encode(), "grpo")["answer"] == expected
    not_read = checked(tmp_path, row, stage="grpo").not_read
    assert [each.field.split(".")[0] for each in not_read] == [left_out]
