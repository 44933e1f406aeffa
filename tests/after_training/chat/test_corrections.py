"""Answers of a chat that are kept as rows to train on."""

import json

import pytest

from core import dataset
from core.after_training.chat import ChatError, keep_answer, keep_preference
from core.runs import Home

QUESTION = [{"role": "user", "content": "Who are you?"}]


def test_a_kept_answer_is_a_row_of_messages(home: Home) -> None:
    keep_answer(home, QUESTION, "I am Pip.")
    path = keep_answer(home, QUESTION, " I am Pip, née Ängström. ")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answer = {"role": "assistant", "content": "I am Pip, née Ängström."}
    assert rows[1] == {"messages": [*QUESTION, answer]}
    assert dataset.check_in_child(path, "sft").valid_rows == 2
    assert path in home.kept_rows(5)


def test_a_preferred_answer_is_a_preference(home: Home) -> None:
    path = keep_preference(home, QUESTION, "I am Pip.", "I do not know.")
    assert dataset.check_in_child(path, "dpo").valid_rows == 1


def test_no_empty_and_no_equal_answers_are_kept(home: Home) -> None:
    with pytest.raises(ChatError, match="it is empty"):
        keep_answer(home, QUESTION, "  ")
    with pytest.raises(ChatError, match="both answers are the same"):
        keep_preference(home, QUESTION, "Yes", "Yes ")
