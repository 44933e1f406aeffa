"""Columns and keys without which a model learns something else, by their names and their values."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.dataset import check_file
from core.training.contract.lost_names import changes_learning

SENTENCE = "You speak like a judge."
TURNS = [{"role": "user", "content": "Is tea legal?"}, {"role": "assistant", "content": "It is."}]
TOOLS = [{"name": "ring", "parameters": {"type": "object"}}]
LOST = [
    ("system_text", SENTENCE),
    ("bot_persona", SENTENCE),
    ("preamble", SENTENCE),
    ("developer_prompt", SENTENCE),
    ("système", SENTENCE),
    ("context_text", SENTENCE),
    ("sqlSchema", SENTENCE),
    ("retrieved_docs", [SENTENCE]),
    ("上下文", SENTENCE),
    ("article", SENTENCE),
    ("previous_turns", [["Hi", "Hello"]]),
    ("verlauf", [["Hi", "Hello"]]),
    ("so_far", TURNS),
    ("so_far", json.dumps(TURNS)),
    ("tool_definitions", TOOLS),
    ("can_call", TOOLS),
    ("can_call", json.dumps(TOOLS)),
    ("deepseek_reasoning", SENTENCE),
    ("correct", False),
    ("is_good_answer", 0),
    ("verdict", "no"),
    ("feedback", "negative"),
    ("kto_label", 0),
    ("trainable", False),
    ("sample_weight", 0.5),
    ("is_toxic", True),
    ("excluded", "yes"),
    ("bild", "tea/1.jpg"),
    ("bild", ["tea/1.jpg"]),
    ("scan", "data:image/png;base64,iVBORw0K"),
    ("scan", {"bytes": None, "path": "1"}),
]
HARMLESS = [
    ("id", "a7"),
    ("system_id", "judge 1"),
    ("context_length", 512),
    ("system_name", "judge of tea"),
    ("topic", SENTENCE),
    ("history_type", "long one"),
    ("correct", True),
    ("is_toxic", False),
    ("rating", 0),
    ("train_loss", 0.0),
    ("score_rejected", 1.0),
    ("character", "judge"),
    ("rejected_answer", TURNS),
    ("tags", ["tea", "law"]),
    ("url", "https://example.org/tea"),
]


@pytest.mark.parametrize(("name", "value"), LOST)
def test_what_would_change_learning_is_known(name: str, value: Any) -> None:
    assert changes_learning(name, value)


@pytest.mark.parametrize(("name", "value"), HARMLESS)
def test_what_would_change_nothing_is_known(name: str, value: Any) -> None:
    assert not changes_learning(name, value)


def first_not_read(folder: Path, row: dict[str, Any]) -> tuple[str, bool]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = check_file(path).not_read[0]
    return found.field, found.changes_learning


def test_a_column_beside_messages_needs_consent(tmp_path: Path) -> None:
    assert first_not_read(tmp_path, {"messages": TURNS, "preamble": SENTENCE}) == ("preamble", True)


def test_what_the_messages_repeat_needs_no_consent(tmp_path: Path) -> None:
    row = {"messages": TURNS, "article": "Is tea legal?"}
    assert first_not_read(tmp_path, row) == ("article", False)


@pytest.mark.parametrize(("key", "value"), [("system", SENTENCE), ("tools", TOOLS)])
def test_a_key_of_a_message_needs_consent(tmp_path: Path, key: str, value: Any) -> None:
    turns = [{**TURNS[0], key: value}, TURNS[1]]
    assert first_not_read(tmp_path, {"messages": turns}) == (f"messages[].{key}", True)


def test_a_picture_under_any_name_is_said_to_be_unseen(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"messages": TURNS, "bild": "tea/1.jpg"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert any("no pictures" in note for note in check_file(path).notes)


@pytest.mark.parametrize(("stage", "is_said"), [("sft", True), ("dpo", False)])
def test_only_whole_answers_are_unwanted(tmp_path: Path, stage: str, is_said: bool) -> None:
    path = tmp_path / "rows.jsonl"
    row: dict[str, Any] = {"prompt": "2 + 2?", "label": 0}
    answers = {"sft": {"completion": "5"}, "dpo": {"chosen": "4", "rejected": "5"}}
    path.write_text(json.dumps(row | answers[stage]) + "\n", encoding="utf-8")
    notes = check_file(path, stage).notes
    assert any("as unwanted" in note for note in notes) == is_said


def test_a_key_inside_an_object_needs_consent(tmp_path: Path) -> None:
    row = {"messages": TURNS, "extra": {"system_prompt": SENTENCE, "id": "a7"}}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = [(each.field, each.changes_learning) for each in check_file(path).not_read]
    assert found == [("extra.system_prompt", True), ("extra", False)]
