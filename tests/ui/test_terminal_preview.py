"""Command line: `preview` shows rows as the model will see them, and says why it cannot."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from core.dataset.preview import ShownRow, ShownText
from tests.builders.dataset_files import CHAT_LINE, write_lines_of
from tests.builders.paths import DATA
from ui.terminal import shown_rows

pytestmark = pytest.mark.training  # a program of its own reads rows as a model does
Printed = pytest.CaptureFixture[str]
KEYS = {"line", "row", "pieces"}
ASKED_AND_ANSWERED = (("user: Hi\n", False), ("Hello", True))


def test_the_json_is_the_contracted_one(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    file = write_lines_of(tmp_path / "rows.jsonl", ['{"messages": []}', "", *[CHAT_LINE] * 5])
    assert tailor("preview", file, "--line", "2", "--rows", "2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"rows", "not_read", "lost_in_template"}
    assert [row["line"] for row in printed["rows"]] == [3, 4]
    row = printed["rows"][0]
    assert row.keys() == KEYS
    assert row["row"]["messages"] == json.loads(CHAT_LINE)["messages"]
    assert [text for text, counts in row["pieces"] if counts is True] == ["Hello<|im_end|>"]


def test_a_bad_row_is_a_sentence_with_its_line(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    file = write_lines_of(tmp_path / "rows.jsonl", ['{"messages": []}', CHAT_LINE])
    assert tailor("preview", file, "--json") == 2
    printed = capsys.readouterr()
    bad, good = json.loads(printed.out)["rows"]
    assert bad["error"].startswith("messages: has no messages")
    assert good["pieces"]
    assert printed.err.startswith("line 1: messages: has no messages")


@pytest.mark.parametrize(
    ("stage", "name", "lines"),
    [
        ("cpt", "tale.txt", [1, 3, 7]),
        ("dpo", "preference_messages.jsonl", [1]),
        ("kto", "unpaired.jsonl", [1, 2]),
        ("grpo", "rows_by_id.json", [1, 2]),
    ],
)
def test_every_kind_of_stage_is_shown(
    tailor: Callable[..., int], capsys: Printed, stage: str, name: str, lines: list[int]
) -> None:
    assert tailor("preview", DATA / name, "--stage", stage, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["line"] for row in rows] == lines
    assert ("rejected" in rows[0]) == (stage == "dpo")


def test_columns_are_mapped(tailor: Callable[..., int], capsys: Printed) -> None:
    flags = ("--map", "question=frage,answer=antwort")
    assert tailor("preview", DATA / "two_columns.jsonl", *flags) == 0
    printed = capsys.readouterr()
    assert "+}" in printed.out
    assert printed.err.startswith("Columns: frage became question")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((DATA / "tale.txt",), "file: this is plain text"),
        ((DATA / "preference.jsonl",), "is preference data"),
        ((DATA / "gzip.jsonl",), "gunzip"),
        (("none.jsonl",), "file: there is no file none.jsonl"),
        (("demo", "--line", "0"), "line: '0' is no such number"),
        (("demo", "--rows", "9" * 5000), "rows: '999"),
        (("demo", "--model", "/no/such/model"), "model: "),
        (("demo", "--stage", "magic"), "stage: "),
    ],
)
def test_rows_that_cannot_be_shown_are_a_sentence(
    tailor: Callable[..., int], capsys: Printed, arguments: tuple[object, ...], says: str
) -> None:
    assert tailor("preview", *arguments) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""


def shown(capsys: Printed, row: ShownRow) -> str:
    """Return what is printed of a row."""
    shown_rows.print_rows([row])
    return capsys.readouterr().out


def test_counted_text_is_marked_where_there_is_no_terminal(capsys: Printed) -> None:
    printed = shown(capsys, ShownRow(ASKED_AND_ANSWERED, num_tokens=7, num_counted=1, line=4))
    assert "Line 4: 7 tokens, 1 count for the loss\nuser: Hi\n{+Hello+}\n" in printed


@pytest.mark.parametrize(("no_color", "is_coloured"), [(False, True), (True, False)])
def test_counted_text_is_coloured_in_a_terminal(
    capsys: Printed, monkeypatch: pytest.MonkeyPatch, no_color: bool, is_coloured: bool
) -> None:
    console = Console(force_terminal=True, no_color=no_color, color_system="standard", width=200)
    monkeypatch.setattr(shown_rows, "out", console)
    printed = shown(capsys, ShownRow(ASKED_AND_ANSWERED))
    assert ("\x1b[1;32mHello" in printed) == is_coloured
    assert ("{+Hello" in printed) != is_coloured


def test_text_cannot_control_the_terminal(capsys: Printed) -> None:
    printed = shown(capsys, ShownRow((("\x1b[2Ja\x07\r", True),)))
    assert "{+\\x1b[2Ja\\x07\\r+}" in printed
    assert "\x1b" not in printed


def test_text_that_is_cut_off_is_shown_as_such(capsys: Printed) -> None:
    printed = shown(capsys, ShownRow(ASKED_AND_ANSWERED, cut=" there"))
    assert "{+Hello+}{-cut off:  there-}" in printed


def test_a_preference_shows_both_answers_and_a_verdict_its_label(capsys: Printed) -> None:
    rejected = ShownText((("Bye", True),))
    assert "Rejected: " in shown(capsys, ShownRow(ASKED_AND_ANSWERED, rejected=rejected))
    assert "Label: not wanted" in shown(capsys, ShownRow(ASKED_AND_ANSWERED, label=False))
