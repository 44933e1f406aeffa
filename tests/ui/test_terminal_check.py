"""Command line: `check` says once what is wrong, and repairs, maps and drops what can be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.dataset_files import CHAT_LINE, rows_in, write_json_rows, write_lines_of
from tests.builders.paths import DATA

Printed = pytest.CaptureFixture[str]


@pytest.mark.parametrize("num_rows", [50, 5000])
def test_the_same_problem_is_said_once_with_its_lines(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path, num_rows: int
) -> None:
    (tmp_path / "rows.jsonl").write_text("{bad\n" * num_rows)
    assert tailor("check", tmp_path / "rows.jsonl") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{num_rows:,} rows (lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and ")


def test_the_layout_of_a_file_is_said(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("check", DATA / "rows_under_data.json") == 0
    assert "The rows are the elements of 'data'" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--map", "--columns"])
@pytest.mark.parametrize(
    "mapping", ["question=frage,answer=antwort", '{"question": "frage", "answer": "antwort"}']
)
def test_columns_are_mapped(
    tailor: Callable[..., int], capsys: Printed, flag: str, mapping: str
) -> None:
    assert tailor("check", DATA / "two_columns.jsonl", flag, mapping) == 0
    printed = capsys.readouterr().out
    assert "Columns: frage became question, antwort became answer." in printed
    assert "1 row · question + answer · no problems" in printed


def test_a_mapping_is_suggested_as_a_command(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("check", DATA / "two_columns.jsonl") == 2
    assert "--map question=frage,answer=antwort" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--map", "question=nowhere"), "columns: the file has no column 'nowhere'; it has frage"),
        (("--map", "Frage=question"), "columns: 'Frage' is no column that Tailor reads; write que"),
        (("--split-text", "whole"), "split-text: two_columns.jsonl is no plain text"),
        (("--split-text", "words"), "split-text: 'words' is not a way to split; choose paragraphs"),
        (("--drop-bad", "/no/such/folder/x.jsonl"), "drop-bad: there is no folder /no/such/folder"),
        (("--drop-bad", "x" * 300), "drop-bad: "),
        (("--repair", "rows.csv"), "repair: rows.csv would hold JSON lines; give it a name"),
        (("--repair", str(DATA / "alpaca.jsonl")), "already exists; name a file that does not"),
    ],
)
def test_flags_that_cannot_be_followed_are_one_line(
    tailor: Callable[..., int], capsys: Printed, flags: tuple[str, ...], says: str
) -> None:
    assert tailor("check", DATA / "two_columns.jsonl", *flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 or flags[0] == "--drop-bad"
    assert says in said
    assert "Traceback" not in said


def test_bad_rows_are_dropped_into_a_new_file(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    source = write_lines_of(tmp_path / "rows.jsonl", [CHAT_LINE, "{", CHAT_LINE + " ", "7"])
    before, target = source.read_bytes(), tmp_path / "good.jsonl"
    assert tailor("check", source, "--drop-bad", target) == 0
    printed = capsys.readouterr()
    assert f"Wrote {target}: 2 rows. 2 rows left out: lines 2, 4." in printed.out
    assert "line 2, row: not JSON" in printed.err
    assert len(rows_in(target)) == 2
    assert source.read_bytes() == before


def test_a_file_of_bad_rows_only_is_not_emptied(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    source = write_lines_of(tmp_path / "rows.jsonl", ["{", "7"])
    assert tailor("check", source, "--drop-bad", tmp_path / "good.jsonl") == 2
    assert "drop-bad: no row would be left" in capsys.readouterr().err
    assert not (tmp_path / "good.jsonl").exists()


def test_a_file_is_repaired_into_a_new_file(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    target = tmp_path / "new.jsonl"
    assert tailor("check", DATA / "trailing_comma.jsonl", "--repair", target) == 0
    assert f"Wrote {target}: 3 rows. Removed commas" in capsys.readouterr().out
    assert len(rows_in(target)) == 3
    assert tailor("check", DATA / "trailing_comma.jsonl", "--repair", target) == 2


def test_what_was_written_is_in_the_json(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    flags = ("--repair", tmp_path / "new.jsonl", "--json")
    assert tailor("check", DATA / "trailing_comma.jsonl", *flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["notes"][0].startswith("Wrote ")
    assert report["num_problems"] == 0


def test_a_table_that_cannot_be_imported_is_json_with_its_line(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n\n1\n")
    assert tailor("check", tmp_path / "rows.csv", "--json") == 2
    report = json.loads(capsys.readouterr().out)
    (problem,) = report["problems"]
    assert (problem["line"], problem["field"]) == (4, "row")
    assert "1 cell," in problem["message"]
    assert report["rows"] == 0


def test_plain_text_is_split_as_asked(tailor: Callable[..., int], capsys: Printed) -> None:
    asked = ("check", DATA / "tale.txt", "--stage", "cpt", "--json")
    num_rows = {}
    for split in ("paragraphs", "lines", "whole"):
        assert tailor(*asked, "--split-text", split) == 0
        num_rows[split] = json.loads(capsys.readouterr().out)["rows"]
    assert num_rows == {"paragraphs": 3, "lines": 4, "whole": 1}


def test_plain_text_under_sft_is_one_sentence(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("check", DATA / "tale.txt") == 2
    said = capsys.readouterr().err
    assert said.startswith("file: this is plain text, without questions and answers; choose stage")


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "Say it. " * 90, "completion": "Yes"}],
        [
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Yes"},
                ]
            }
        ],
    ],
)
def test_check_with_a_model_says_what_train_would(
    tailor: Callable[..., int],
    capsys: Printed,
    tmp_path: Path,
    fake_program: None,
    rows: list[object],
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    asked = ("--model", "demo", "--max-length", "32")
    checked = tailor("check", file, *asked)
    said_by_check = capsys.readouterr().err
    assert checked == tailor("train", "--dataset", file, *asked)
    assert said_by_check == capsys.readouterr().err


def test_json_of_a_check_with_a_model_lists_what_train_would_say(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    row = {"prompt": "Say it. " * 90, "completion": "Yes"}
    file = write_json_rows(tmp_path / "rows.jsonl", [row])
    assert tailor("check", file, "--model", "demo", "--max-length", "32", "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert [each["field"] for each in report["problems"]] == ["max_length"]
    assert report["fully_masked_rows"] == 1


def test_a_model_that_cannot_measure_the_rows_is_said(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    tailor("check", "demo", "--model", tmp_path / "model")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "estimate", "check"])
def test_an_adapter_as_model_is_answered_with_flags(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path, command: str
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    file = (DATA / "messages.jsonl",) if command == "check" else ()
    assert tailor(command, *file, "--model", tmp_path) == 2
    assert capsys.readouterr().err.endswith(f": --model owner/base --adapter {tmp_path}\n")


def test_wanted_rows_alone_need_no_consent(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    rows = [
        {"question": "Who?", "answer": name, "label": n} for n, name in enumerate(["Joe", "Pip"])
    ]
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    assert tailor("check", file, "--json") == 0
    assert "--keep-wanted" in capsys.readouterr().out
    assert tailor("check", file, "--keep-wanted", tmp_path / "wanted.jsonl", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 1
    assert not any(each["changes_learning"] for each in report["not_read"])


def test_rows_whose_answers_are_all_masked_are_counted(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Pip."}]
    masked = [turns[0], {**turns[1], "weight": 0}]
    rows = [{"messages": turns}, {"messages": masked}]
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    assert tailor("check", file, "--model", "demo") == 0
    printed = capsys.readouterr().out
    assert "0 lose the whole answer" in printed
    assert "In 1 row no answer counts for the loss" in printed


def test_evaluation_rows_of_another_kind_are_refused_by_check_and_train(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Yes"}] * 3)
    other = write_json_rows(tmp_path / "eval.jsonl", [{"instruction": "Hi", "output": "Yes"}] * 3)
    said = "eval_dataset: rows.jsonl holds prompt-completion rows (standard) but eval.jsonl holds"
    assert tailor("check", file, "--eval", other, "--model", "demo") == 2
    assert said in capsys.readouterr().err
    assert tailor("train", "--model", "demo", "--dataset", file, "--eval-dataset", other) == 2
    assert said in capsys.readouterr().err
