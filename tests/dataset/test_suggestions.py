"""Suggested mappings: names in several languages, values that are looked at, and what is left
out."""

from collections.abc import Mapping
from typing import Any

import pytest

from core.dataset.column_names import by_plain_name, plain_name
from core.dataset.suggestions import suggest_mapping

QUESTION = "Which bird sings at night?"
ANSWER = "The nightingale does."
CONTEXT = "Nightingales sing in the dark."
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
MORE: Mapping[str, Mapping[str, Any]] = {
    "question answer": {"Frage": QUESTION, "Antwort": ANSWER},
    "question answer system": {"Pregunta": QUESTION, "Respuesta": ANSWER, "Sistema": CONTEXT},
    "question answer context": {"質問": QUESTION, "回答": ANSWER, "文脈": CONTEXT},
}


@pytest.mark.parametrize("ours", MORE)
def test_names_of_other_languages_are_known(ours: str) -> None:
    row = dict(MORE[ours])
    assert suggest_mapping([row], "sft") == dict(zip(ours.split(), row, strict=True))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Question 1", "Answer 1"),
        ("question_text", "answer_text"),
        ("sql_prompt", "sql"),
        ("प्रश्न", "उत्तर"),
        ("вопрос1", "ответ1"),
        ("questoin", "anwser"),
        ("inputs", "targets"),
        ("article", "highlights"),
        ("คำถาม", "คำตอบ"),
    ],
)
def test_a_question_and_its_answer_are_found(question: str, answer: str) -> None:
    row = {"id": "a1", question: QUESTION, answer: ANSWER}
    assert suggest_mapping([row], "sft") == {"question": question, "answer": answer}


def test_the_first_of_numbered_columns_is_taken() -> None:
    row = dict.fromkeys(("質問1", "回答1", "質問2", "回答2"), QUESTION)
    assert suggest_mapping([row], "sft") == {"question": "質問1", "answer": "回答1"}


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 7, "answer_id": 9, "body_id": 3},
        {"request": "3f2a-11", "response": "b7c9-22"},
        {"input": "http://x.org/a", "output": "http://x.org/b"},
        {"input": {"a": QUESTION}, "output": {"b": ANSWER}},
        {"instruction": QUESTION, "winner": ANSWER, "loser": CONTEXT},
        {"chosen_text": ANSWER, "rejected_text": CONTEXT},
        {"role": "the user", "content": QUESTION},
        {"system": CONTEXT, "chat": QUESTION},
        {"topic": "night birds", "input": QUESTION},
        {"prompt_text": QUESTION, "answer": "ans-0001"},
        {"context": CONTEXT, "question": QUESTION, "answers": {"text": [ANSWER]}},
    ],
    ids=lambda row: "+".join(row),
)
def test_nothing_is_suggested_where_it_would_lead_astray(row: Mapping[str, Any]) -> None:
    assert suggest_mapping([dict(row)], "sft") == {}


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("system_prompt", CONTEXT, "system"),
        ("context", CONTEXT, "context"),
        ("chat_history", [["Hello", "Hi"]], "history"),
        ("chat_history", MESSAGES, "history"),
        ("functions", [{"name": "look"}], "tools"),
    ],
)
def test_optional_columns_are_in_the_suggestion(column: str, value: object, kind: str) -> None:
    row = {"human": QUESTION, "assistant": ANSWER, column: value}
    assert suggest_mapping([row], "sft")[kind] == column


def test_a_passage_beside_its_summary_is_no_text_of_its_own() -> None:
    row = {"document": CONTEXT, "summary": ANSWER}
    assert suggest_mapping([row], "sft") == {"question": "document", "answer": "summary"}


def test_a_passage_beside_its_title_is_a_text() -> None:
    assert suggest_mapping([{"title": "Night birds", "body": CONTEXT}], "sft") == {"text": "body"}


def test_every_text_may_be_learnt_by_itself() -> None:
    rows = [{"document": CONTEXT, "summary": ANSWER}]
    assert suggest_mapping(rows, "cpt") == {"text": "document"}


def test_objects_are_no_conversation() -> None:
    row = {"contents": {"a": 1}, "body": CONTEXT}
    assert suggest_mapping([row], "sft") == {"text": "body"}


def test_preferences_are_suggested_where_they_are_learnt() -> None:
    row = {"prompt": QUESTION, "better": ANSWER, "worse": CONTEXT}
    wanted = {"prompt": "prompt", "chosen": "better", "rejected": "worse"}
    assert suggest_mapping([row], "dpo") == wanted


def test_right_answers_are_in_the_suggestion() -> None:
    row = {"problem": QUESTION, "answer": ANSWER}
    assert suggest_mapping([row], "grpo") == {"question": "problem", "answer": "answer"}


@pytest.mark.parametrize(
    ("name", "plain"),
    [("Answer-Text", "answertext"), ("回答１", "回答1"), ("हिंदी", "हिंदी"), ("❓", "")],
)
def test_names_keep_the_letters_of_every_script(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_names_that_differ_in_signs_only_stay_apart() -> None:
    assert by_plain_name(["a-b", "a_b"]) == {"ab": "a-b", "a_b": "a_b"}


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("best_answer", "worst_answer"), ("preferred", "other"), ("Better Text", "Worse Text")],
)
def test_a_better_and_a_worse_answer_are_found(chosen: str, rejected: str) -> None:
    row = {"prompt": QUESTION, chosen: ANSWER, rejected: CONTEXT}
    mapping = {"prompt": "prompt", "chosen": chosen, "rejected": rejected}
    assert suggest_mapping([row], "dpo") == mapping


def test_a_verdict_is_no_answer() -> None:
    row = {"prompt": QUESTION, "response_a": ANSWER, "response_b": CONTEXT, "winner": "model_a"}
    assert suggest_mapping([row], "dpo") == {}
