"""Make suites of what a user taught: who the model is, and the answers of held-out rows."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.job import Problem, SpecError
from core.runs.checks.library import HELD_OUT, IDENTITY, SHIPPED
from core.training.contract.checks.suite import (
    MAX_NEW_TOKENS,
    MAX_TEXT,
    Suite,
    SuiteTest,
    read_test,
)

PARAPHRASES = SHIPPED / "paraphrases" / "identity.toml"
"""Ways to ask each of the three questions."""
MAX_TESTS = 100
CHARACTERS_PER_TOKEN = 2
"""Fewest characters of a token in most texts: for the length of an answer."""
MOST_NEW_TOKENS = 256
LABELS: Mapping[str, str] = {
    "name": "What is it called?",
    "maker": "Who made it?",
    "purpose": "What does it do?",
}
"""Part of an identity -> the question about it, as the page asks it."""


@dataclass(frozen=True)
class Identity:
    """Words that the answers about a model must contain; "" for what is not asked."""

    name: str = ""
    maker: str = ""
    purpose: str = ""


def identity_suite(identity: Identity) -> Suite:
    """Return a suite of up to 100 questions about who a model is. Raises SpecError."""
    asked = {part: getattr(identity, part).strip() for part in LABELS}
    asked = {part: words for part, words in asked.items() if words}
    if not asked:
        fix = "give at least its name"
        raise SpecError(Problem("identity", "no answer is given", fix))
    for part, words in asked.items():
        if len(words) > MAX_TEXT:
            raise SpecError(Problem(part, "is too long", "give the words that must be said"))
    with PARAPHRASES.open("rb") as file:
        ways = tomllib.load(file)
    tests = []
    for part, words in asked.items():
        for question in ways[part]:
            tests.append({"prompt": question, "contains": words, "category": LABELS[part]})
    return _suite(IDENTITY, tests[:MAX_TESTS])


def held_out_suite(rows: Iterable[Mapping[str, Any]]) -> Suite:
    """Return a suite of held-out rows in TRL's columns: each answer must be the one of its row.

    Raises SpecError if no row has a question with an answer.
    """
    tests: list[dict[str, Any]] = []
    for row in rows:
        messages, answer = question_of(row)
        if messages and answer and len(tests) < MAX_TESTS:
            tokens = min(MOST_NEW_TOKENS, max(MAX_NEW_TOKENS, len(answer) // CHARACTERS_PER_TOKEN))
            fields: dict[str, Any] = {
                "messages": messages,
                "exact": answer,
                "max_new_tokens": tokens,
            }
            if row.get("tools"):
                fields["tools"] = json.loads(row["tools"])
            if read_test(fields, 0)[0]:
                tests.append(fields)
    if not tests:
        problem = "no held-out row has a question with an answer in text"
        raise SpecError(Problem(HELD_OUT, problem, "hold out rows with eval_fraction"))
    return _suite(HELD_OUT, tests)


def question_of(row: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return (messages up to the last answer, that answer); nothing for plain texts."""
    if "messages" in row:
        messages = row["messages"]
        prompt, answer = messages[:-1], messages[-1]
        if answer["role"] != "assistant":
            return (), ""
        return prompt, str(answer.get("content") or "")
    prompt, answer = row.get("prompt"), row.get("completion", row.get("chosen"))
    if isinstance(prompt, str) and isinstance(answer, str):
        return [{"role": "user", "content": prompt}], answer.strip()
    if isinstance(prompt, list) and isinstance(answer, list) and len(answer) == 1:
        return prompt, str(answer[0].get("content") or "")
    return (), ""


def _suite(name: str, tests: Sequence[Mapping[str, Any]]) -> Suite:
    read: list[SuiteTest] = []
    for line, fields in enumerate(tests, start=1):
        test, faults = read_test(fields, line)
        assert test, faults
        read.append(test)
    return Suite(name, tuple(read))
