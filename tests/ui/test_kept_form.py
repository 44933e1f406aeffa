"""Test the form that the browser keeps, and what is known against a start."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.builders.page import FormPage, Shown, llama
from ui.events import MESSAGE
from ui.form import FIRST_SHOWN
from ui.handlers import Handlers, kept_form

SECONDS_TO_LOAD = 60


def kept(page: FormPage, shown: Shown) -> str:
    """Return what the browser keeps after an edit."""
    parts = {"format": kept_form.FORMAT, "values": page.form, "plan": shown["kept_plan"]}
    return json.dumps(parts)


def reopened(handlers: Handlers, text: str) -> FormPage:
    """Return a new page that the browser's copy was restored on."""
    page = FormPage(handlers, FIRST_SHOWN)
    page.receive(kept_form.on_restore(text))
    return page


def test_a_form_comes_back_as_it_was(page_form: FormPage) -> None:
    shown = page_form.edit(learning_rate=0.005, lora_r=24)
    again = reopened(page_form.handlers, kept(page_form, shown))
    again.edit()
    assert again.form == page_form.form


def test_what_was_set_by_hand_stays_under_a_profile(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    page.edit()
    shown = page.edit(per_device_train_batch_size=3)
    again = reopened(handlers, kept(page, shown))
    again.edit()
    assert again.form["per_device_train_batch_size"] == 3


def test_an_edit_that_the_server_never_saw_comes_back(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    shown = page.edit()
    page.form["per_device_train_batch_size"] = 3
    again = reopened(handlers, kept(page, shown))
    again.edit()
    assert again.form["per_device_train_batch_size"] == 3


@pytest.mark.parametrize(
    "text", ["", "null", "{", "[]", '{"values": 1}', '{"values": {"model": [1]}}', "[" * 10_000]
)
def test_an_odd_copy_changes_nothing(text: str) -> None:
    assert kept_form.on_restore(text).keys() == {"filled"}


def test_a_form_of_another_version_is_restored_and_said() -> None:
    text = json.dumps({"format": 0, "values": {"lora_r": 12, "teleport": 1, "seed": "many"}})
    shown: dict[str, Any] = kept_form.on_restore(text)
    assert shown["lora_r"] == 12
    assert "another version" in shown[MESSAGE]
    assert not {"teleport", "seed"} & shown.keys()


@pytest.mark.parametrize("field", ["method", "stage", "gpu", "profile", "optim"])
def test_a_choice_that_is_not_known_any_more_is_left_out(field: str) -> None:
    text = json.dumps({"format": kept_form.FORMAT, "values": {**FIRST_SHOWN, field: "teleport"}})
    shown: dict[str, Any] = kept_form.on_restore(text)
    assert field not in shown
    assert "another version" in shown[MESSAGE]


# What stands beside Start


def test_a_job_that_can_start_says_nothing(page_form: FormPage) -> None:
    shown = page_form.edit()
    assert shown["start"]["interactive"] is True
    assert shown["start_facts"] == ""


def test_a_wrong_value_locks_the_start_and_is_said(page_form: FormPage) -> None:
    shown = page_form.edit(lora_r=-4)
    assert shown["start"]["interactive"] is False
    assert "LoRA rank: -4 is too small" in shown["start_facts"]


def test_data_with_problems_locks_the_start(page_form: FormPage, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n{"text": \n')
    shown = page_form.edit(dataset=str(file))
    assert "1 line of rows.jsonl cannot be used" in shown["start_facts"]
    assert shown["start"]["interactive"] is False


@pytest.mark.training
def test_a_model_that_is_not_here_locks_the_start(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora"))
    page.edit()
    deadline = time.monotonic() + SECONDS_TO_LOAD
    while page.fire(handlers.rows.on_lengths, "answer")["lengths_timer"].active:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shown = page.fire(handlers.on_start_facts, "answer")
    assert "the Hugging Face Hub cannot be reached" in shown["start_facts"]
    assert shown["start"]["interactive"] is False
