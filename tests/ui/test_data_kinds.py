"""Test the data panel of a job whose files hold rows of different kinds."""

import json
from pathlib import Path

import pytest

from tests.builders.page import FormPage


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, str]:
    """Return a file of prompts and completions, and one of instructions and outputs."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Two?", "completion": "2"}\n')
    other = tmp_path / "other.jsonl"
    other.write_text('{"instruction": "Three?", "output": "3"}\n')
    return {"dataset": str(file), "eval_dataset": str(other)}


def test_evaluation_rows_of_another_kind_are_pointed_out_at_once(
    page_form: FormPage, pairs: dict[str, str]
) -> None:
    said = page_form.edit(**pairs)["data_line"]
    assert "Evaluation data: " in said
    assert "prompt-completion rows (standard) but other.jsonl holds" in said


def test_evaluation_rows_of_another_kind_lock_the_start(
    page_form: FormPage, pairs: dict[str, str]
) -> None:
    assert page_form.edit(**pairs)["start"]["interactive"] is False


def test_questions_that_become_messages_go_with_messages(
    page_form: FormPage, pairs: dict[str, str]
) -> None:
    chat = {"prompt": [{"role": "user", "content": "Two?"}]}
    chat["completion"] = [{"role": "assistant", "content": "2"}]
    Path(pairs["dataset"]).write_text(json.dumps(chat) + "\n")
    assert page_form.edit(**pairs)["start"]["interactive"] is True
