"""Test the data panel: upload, import, column mapping, repair and the report of a file."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core.resolve import resolve
from core.runs import Home
from core.runs.listing import list_runs
from tests.builders.page import FormPage, Shown, data_of, demo
from ui.handlers import Handlers, columns
from ui.handlers.reports import estimated_rows

SECONDS_TO_IMPORT = 60
GOOD_AND_BAD = '{"text": "one"}\n{"text": \n{"text": "two"}\n'
ODD_COLUMNS = '{"Frage": "Wer?", "Antwort": "Pip", "n": 1}\n'
PREFERENCE = '{"prompt": "Who?", "chosen": "Pip.", "rejected": "Who knows."}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a place for a data file."""
    return tmp_path / "rows.jsonl"


def test_the_demo_is_checked(page_form: FormPage) -> None:
    assert "311 rows" in page_form.edit()["data_line"]


def test_an_uploaded_file_is_kept_under_a_safe_name(
    handlers: Handlers, home: Home, tmp_path: Path
) -> None:
    dropped = tmp_path / "my rows (1).jsonl"
    dropped.write_text('{"text": "Once"}\n')
    path = data_of(handlers.data.on_upload(str(dropped)))
    assert path.is_relative_to(home.uploads)
    assert path.name == "my-rows-1.jsonl"
    assert path.read_text() == '{"text": "Once"}\n'


def test_the_name_of_an_upload_keeps_its_letters(handlers: Handlers, tmp_path: Path) -> None:
    dropped = tmp_path / "Größe 質問 (1).jsonl"
    dropped.write_text('{"text": "Once"}\n')
    assert data_of(handlers.data.on_upload(str(dropped))).name == "Größe-質問-1.jsonl"


def test_uploaded_files_are_in_the_menu(handlers: Handlers, file: Path) -> None:
    file.write_text('{"text": "one"}\n')
    handlers.data.on_upload(str(file))
    choices = handlers.runs.on_load()["dataset"]["choices"]
    assert [label.partition(" · ")[0] for label, _value in choices] == [
        "Demo: meet Pip",
        "rows.jsonl",
    ]


# Problems and repairs


def test_invalid_rows_are_listed_by_line(page_form: FormPage, file: Path) -> None:
    file.write_text(GOOD_AND_BAD)
    assert "line 2" in page_form.edit(dataset=str(file))["data_line"]


def test_data_with_invalid_rows_does_not_start(page_form: FormPage, file: Path) -> None:
    file.write_text(GOOD_AND_BAD)
    page_form.edit(dataset=str(file))
    assert "line 2" in page_form.start()["start_message"]


def test_an_invalid_row_of_another_data_file_does_not_start(
    page_form: FormPage, file: Path, home: Home
) -> None:
    file.write_text('{"messages": []}\n')
    page_form.edit(mix=str(file))
    said = page_form.start()["start_message"]
    assert "Not started. More data files: 1 line of rows.jsonl cannot be used" in said
    assert list_runs(home) == ()


def test_invalid_rows_are_removed_into_a_new_file(page_form: FormPage, file: Path) -> None:
    file.write_text(GOOD_AND_BAD)
    page_form.edit(dataset=str(file))
    on_remove_rows = page_form.handlers.data.on_remove_rows
    shown = page_form.fire(on_remove_rows, "dataset", "stage")
    assert data_of(shown).read_text() == '{"text": "one"}\n{"text": "two"}\n'
    assert "left out: line 2" in shown["data_message"]
    assert file.read_text() == GOOD_AND_BAD


def test_removing_rows_is_offered_while_there_are_invalid_ones(
    page_form: FormPage, file: Path
) -> None:
    file.write_text(GOOD_AND_BAD)
    assert page_form.edit(dataset=str(file))["remove_rows"]["visible"] is True
    page_form.fire(page_form.handlers.data.on_remove_rows, "dataset", "stage")
    assert page_form.edit()["remove_rows"]["visible"] is False


def test_a_file_in_another_encoding_is_repaired_into_a_new_file(
    page_form: FormPage, file: Path
) -> None:
    file.write_text('{"text": "one"}\n', encoding="utf-16")
    assert page_form.edit(dataset=str(file))["repair"]["visible"] is True
    shown = page_form.fire(page_form.handlers.data.on_repair, "dataset", "stage")
    assert data_of(shown).read_text() == '{"text": "one"}\n'


def test_data_that_has_changed_since_it_was_shown_does_not_start(
    page_form: FormPage, file: Path
) -> None:
    file.write_text('{"text": "one"}\n')
    page_form.edit(dataset=str(file))
    file.write_text('{"text": "two"}\n')
    said = page_form.start()["start_message"]
    assert "Not started" in said
    assert "changed" in said


def test_evaluation_rows_that_are_trained_on_are_pointed_out(
    page_form: FormPage, file: Path, tmp_path: Path
) -> None:
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "two"}\n{"text": "three"}\n')
    page_form.edit(dataset=str(file))
    shown = page_form.edit(eval_dataset=str(held_out))
    assert "The evaluation data has 1 row" in shown["data_line"]


def test_an_evaluation_file_of_trained_rows_only_does_not_start(
    page_form: FormPage, file: Path, tmp_path: Path
) -> None:
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text":"two"}\n')
    page_form.edit(dataset=str(file))
    shown = page_form.edit(eval_dataset=str(held_out))
    assert "Every row of the evaluation data is trained on too" in shown["data_line"]
    assert "every row is trained on too" in page_form.start()["start_message"].lower()


def test_an_evaluation_file_that_is_no_text_does_not_hide_the_report(
    page_form: FormPage, file: Path, tmp_path: Path
) -> None:
    file.write_text('{"text": "one"}\n')
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "two"}\n', encoding="utf-16")
    page_form.edit(dataset=str(file))
    shown = page_form.edit(eval_dataset=str(held_out))
    assert "1 row" in shown["data_line"]


# Stages


def test_data_of_another_stage_offers_that_stage(page_form: FormPage, file: Path) -> None:
    file.write_text(PREFERENCE)
    shown = page_form.edit(dataset=str(file))
    assert shown["switch_stage"]["visible"] is True
    assert shown["switch_stage"]["value"] == "Switch to stage DPO"


def test_data_of_another_stage_does_not_start(page_form: FormPage, file: Path) -> None:
    file.write_text(PREFERENCE)
    page_form.edit(dataset=str(file))
    assert "Data: 1 line " in page_form.start()["start_message"]


def test_the_stage_of_the_data_is_chosen(page_form: FormPage, file: Path) -> None:
    file.write_text(PREFERENCE)
    page_form.edit(dataset=str(file))
    page_form.fire(page_form.handlers.data.on_switch_stage, "dataset", "stage")
    shown = page_form.edit()
    assert page_form.form["stage"] == "dpo"
    assert shown["switch_stage"]["visible"] is False


# Columns


def test_a_file_with_unknown_columns_opens_their_mapping(page_form: FormPage, file: Path) -> None:
    file.write_text(ODD_COLUMNS)
    assert page_form.edit(dataset=str(file))["columns_panel"]["open"] is True


def test_the_mapping_is_left_alone_while_the_data_is_the_same(
    page_form: FormPage, file: Path
) -> None:
    file.write_text(ODD_COLUMNS)
    page_form.edit(dataset=str(file))
    assert "columns_panel" not in page_form.edit(lora_r=9)


def test_the_columns_of_a_row_format_are_asked_for() -> None:
    shown = columns.on_row_format("prompt and completion", ["Frage", "Antwort", "n"])
    labels = [shown[f"column_{place}"]["label"] for place in range(7)]
    optional = [f"{part} (optional)" for part in ("input", "context", "system", "tools", "history")]
    assert labels == ["prompt", "completion", *optional]


def test_a_forged_row_format_is_ignored(home: Home, file: Path) -> None:
    assert columns.on_row_format("nonsense", ["a"]) == {}
    assert columns.on_map_columns(home, str(file), "sft", "nonsense") == {}


def map_columns(page: FormPage, file: Path, **boxes: str | None) -> Shown:
    """Use the columns of a file of the format "prompt and completion"."""
    form = {"dataset": str(file), "stage": "sft", "row_format": "prompt and completion"}
    shown: Shown = columns.on_map_columns(page.handlers.home, **form, **boxes)
    page.receive(shown)
    return shown


def test_mapped_columns_are_known(page_form: FormPage, file: Path) -> None:
    file.write_text(ODD_COLUMNS)
    page_form.edit(dataset=str(file))
    map_columns(page_form, file, column_0="Frage", column_1="Antwort", column_2="")
    shown: dict[str, Any] = page_form.edit()
    assert shown["columns_panel"]["open"] is False
    assert shown["row_format"]["value"] == "prompt and completion"
    assert [shown[box]["value"] for box in ("column_0", "column_1")] == ["prompt", "completion"]


def test_a_column_that_is_not_chosen_is_asked_for(page_form: FormPage, file: Path) -> None:
    file.write_text(ODD_COLUMNS)
    shown = map_columns(page_form, file, column_0="Frage", column_1=None)
    assert "completion" in shown["data_message"]
    assert "dataset" not in shown


# Imports


def test_a_table_is_imported_as_jsonl(handlers: Handlers, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text('question,answer\n"How, many?",7\n')
    shown: Shown = handlers.data.on_upload(str(table))
    assert "visible" in shown["cancel_import"]
    deadline = time.monotonic() + SECONDS_TO_IMPORT
    while "dataset" not in shown and time.monotonic() < deadline:
        time.sleep(0.05)
        shown = handlers.data.on_import_progress(shown["import_id"])
    assert json.loads(data_of(shown).read_text()) == {"question": "How, many?", "answer": "7"}


def test_an_import_that_fails_says_why(handlers: Handlers, tmp_path: Path) -> None:
    shown: Shown = handlers.data.on_import(str(tmp_path / "missing.csv"))
    deadline = time.monotonic() + SECONDS_TO_IMPORT
    while shown["import_timer"].active and time.monotonic() < deadline:
        time.sleep(0.05)
        shown = handlers.data.on_import_progress(shown["import_id"])
    assert "Not imported. " in shown["data_message"]


def test_an_unknown_import_shows_nothing(handlers: Handlers) -> None:
    shown: Shown = handlers.data.on_import_progress("nonsense")
    assert shown["cancel_import"]["visible"] is False


@pytest.mark.parametrize(("reference", "is_offered"), [("owner/name", True), ("demo", False)])
def test_an_import_is_offered_for_what_is_no_jsonl(
    page_form: FormPage, reference: str, is_offered: bool
) -> None:
    assert page_form.edit(dataset=reference)["import_data"]["visible"] is is_offered


# Statistics


def test_rows_of_further_files_count_by_their_weight(file: Path) -> None:
    file.write_text('{"text": "one"}\n' * 100)
    alone = estimated_rows(resolve(demo()))
    mixed = estimated_rows(resolve(demo(mix=f"{file} = 2.5")))
    assert alone is not None
    assert mixed is not None
    assert mixed.num_rows == alone.num_rows + 250


# Plain text


@pytest.fixture
def tale(handlers: Handlers, tmp_path: Path) -> Path:
    """Return an uploaded text of two paragraphs."""
    dropped = tmp_path / "tale.txt"
    dropped.write_text("Once upon\na time.\n\nThe end.\n")
    return data_of(handlers.data.on_upload(str(dropped)))


def test_an_uploaded_text_stays_one_and_is_in_the_menu(handlers: Handlers, tale: Path) -> None:
    assert tale.name == "tale.txt"
    choices = handlers.runs.on_load()["dataset"]["choices"]
    assert str(tale) in [value for _label, value in choices]


def test_a_text_offers_the_stage_that_learns_it(page_form: FormPage, tale: Path) -> None:
    shown = page_form.edit(dataset=str(tale))
    assert "plain text" in shown["data_line"]
    assert shown["switch_stage"]["value"] == "Switch to stage Continued pretraining"
    assert page_form.handlers.data.on_switch_stage(str(tale), "sft") == {"stage": "cpt"}


def test_a_text_is_split_as_the_user_chooses(page_form: FormPage, tale: Path) -> None:
    shown = page_form.edit(dataset=str(tale), stage="cpt")
    assert "2 rows" in shown["data_line"]
    assert shown["split_text"]["visible"]
    done = page_form.handlers.data.on_split_text(str(tale), "cpt", "whole")
    rows = data_of(done).read_text().splitlines()
    assert [json.loads(row)["text"] for row in rows] == ["Once upon\na time.\n\nThe end."]


# Labels


def labelled(file: Path) -> None:
    """Write one answer that is wanted and one that is not."""
    rows = [
        {"question": "Who?", "answer": name, "label": n} for n, name in enumerate(["Joe", "Pip"])
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_one_click_keeps_the_wanted_rows(page_form: FormPage, file: Path) -> None:
    labelled(file)
    shown = page_form.edit(dataset=str(file))
    assert shown["keep_wanted"]["visible"] is True
    assert shown["start"]["interactive"] is False
    done = page_form.fire(page_form.handlers.data.on_keep_wanted, "dataset", "stage")
    assert [json.loads(row)["answer"] for row in data_of(done).read_text().splitlines()] == ["Pip"]
    assert "1 row left out: line 1" in done["data_message"]
    shown = page_form.edit()
    assert shown["keep_wanted"]["visible"] is False
    assert shown["start"]["interactive"] is True


def test_labelled_rows_offer_the_stage_that_reads_labels(page_form: FormPage, file: Path) -> None:
    labelled(file)
    shown = page_form.edit(dataset=str(file))
    assert shown["switch_stage"]["value"] == "Switch to stage KTO"
    page_form.fire(page_form.handlers.data.on_switch_stage, "dataset", "stage")
    shown = page_form.edit()
    assert page_form.form["stage"] == "kto"
    assert shown["keep_wanted"]["visible"] is False


# What is not read

UNREAD = (
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], '
)
UNREAD += '"images": ["a.png"], "id": 7}\n'


def test_what_is_not_read_is_named_with_its_rows(page_form: FormPage, file: Path) -> None:
    file.write_text(UNREAD)
    shown = page_form.edit(dataset=str(file))
    assert "<code>images</code> in 1 row, first on line 1" in shown["data_line"]
    assert shown["columns_panel"]["open"] is True


def test_what_is_not_read_locks_the_start_until_one_click(page_form: FormPage, file: Path) -> None:
    file.write_text(UNREAD)
    shown = page_form.edit(dataset=str(file))
    assert shown["train_without"]["visible"] is True
    assert shown["start"]["interactive"] is False
    assert "press <code>Train without it</code>, below the data" in shown["start_facts"]
    page_form.fire(page_form.handlers.data.on_train_without)
    shown = page_form.edit()
    assert shown["train_without"]["visible"] is False
    assert shown["start"]["interactive"] is True
