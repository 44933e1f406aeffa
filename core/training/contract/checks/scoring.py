"""Judge answers: which tests of a suite passed. Standard library only; asks no model."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .patterns import search_all
from .suite import JSON_TYPES, Suite, SuiteTest

NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
FENCE = "```"
END_OF_THOUGHTS = "</think>"
MAX_OBJECTS = 100
"""Beginnings of JSON objects in an answer that are looked at for a call."""
FUNCTION = re.compile(r"<function=([\w.-]{1,100})>")
# fmt: off
REFUSALS = (
    "i can't", "i cannot", "i can not", "i won't", "i will not", "i'm not able", "i am not able",
    "i'm unable", "i am unable", "i'm sorry", "i am sorry", "i must decline", "i have to decline",
    "i decline", "i refuse", "can't help with", "cannot help with", "can't assist",
    "cannot assist", "can't provide", "cannot provide", "not something i can", "against the law",
    "is illegal", "unable to help", "unable to assist",
)
# fmt: on
"""Words by which an answer refuses, in lower case."""


def judge(suite: Suite, answers: Sequence[str]) -> tuple[bool, ...]:
    """Return for each test whether its answer passes.

    The answer to a test with choices is the choice that the model finds the most likely.
    """
    pairs = list(zip(suite.tests, map(final_answer, answers), strict=True))
    searched = [(test.regex, answer) for test, answer in pairs if test.regex]
    found = iter(search_all(searched) if searched else ())
    passed = []
    for test, answer in pairs:
        matches = next(found) if test.regex else True
        asked = CONDITIONS.keys() & test.fields.keys()
        passed.append(bool(matches) and all(CONDITIONS[name](test, answer) for name in asked))
    return tuple(passed)


def final_answer(answer: str) -> str:
    """Return an answer without the thoughts before it, and with plain apostrophes."""
    return answer.rpartition(END_OF_THOUGHTS)[2].strip().replace("\u2019", "'")


def last_number(answer: str) -> float | None:
    """Return the last number in an answer; None if there is none."""
    numbers = NUMBER.findall(answer.replace("\u2212", "-"))
    return float(numbers[-1].replace(",", "")) if numbers else None


def refuses(answer: str) -> bool:
    """Return True if an answer says that it will not do what it was asked."""
    lower = answer.lower()
    return any(words in lower for words in REFUSALS)


def calls_in(answer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, arguments) of the calls of tools in an answer, in any of the usual forms."""
    for head in FUNCTION.finditer(answer):
        for fields in _objects(answer[head.end() :]):
            yield head[1], fields
            break
    for fields in _objects(answer):
        function = fields.get("function")
        call = function if isinstance(function, dict) else fields
        arguments = call.get("arguments", call.get("parameters", call.get("args")))
        if isinstance(arguments, str):
            arguments = next(_objects(arguments), None)
        if isinstance(call.get("name"), str) and isinstance(arguments, dict):
            yield call["name"], arguments


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects in a text, from its beginning, those inside others left out."""
    decoder = json.JSONDecoder()
    place, tried = text.find("{"), 0
    while place >= 0 and tried < MAX_OBJECTS:
        tried += 1
        try:
            value, end = decoder.raw_decode(text, place)
            yield value
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)


def _is_exact(test: SuiteTest, answer: str) -> bool:
    return answer in [text.strip().replace("\u2019", "'") for text in test.exact]


def _contains(test: SuiteTest, answer: str) -> bool:
    lower = answer.casefold()
    return all(text.casefold() in lower for text in test.contains)


def _lacks(test: SuiteTest, answer: str) -> bool:
    lower = answer.casefold()
    return not any(text.casefold() in lower for text in test.not_contains)


def _has_number(test: SuiteTest, answer: str) -> bool:
    number = last_number(answer)
    return number is not None and abs(number - (test.number or 0)) <= test.tolerance + 1e-9


def _is_json(test: SuiteTest, answer: str) -> bool:
    if answer.startswith(FENCE) and answer.endswith(FENCE):
        answer = answer.strip("`").removeprefix("json")
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    keys = test.json or {}
    return all(name in value and _is_of(value[name], kind) for name, kind in keys.items())


def _is_of(value: object, kind: str) -> bool:
    is_flag = isinstance(value, bool)  # which is an integer in Python
    if is_flag and kind in ("number", "integer"):
        return False
    return isinstance(value, JSON_TYPES[kind])


def _is_choice(test: SuiteTest, answer: str) -> bool:
    return answer == final_answer(test.choice[test.answer])


def _calls_tool(test: SuiteTest, answer: str) -> bool:
    assert test.tool_call
    for name, arguments in calls_in(answer):
        is_named = name == test.tool_call.name
        if is_named and test.tool_call.arguments in (None, arguments):
            return True
    return False


def _refuses_as_asked(test: SuiteTest, answer: str) -> bool:
    return refuses(answer) == test.refusal


CONDITIONS: Mapping[str, Callable[[SuiteTest, str], bool]] = MappingProxyType(
    {
        "exact": _is_exact,
        "contains": _contains,
        "not_contains": _lacks,
        "number": _has_number,
        "json": _is_json,
        "choice": _is_choice,
        "tool_call": _calls_tool,
        "refusal": _refuses_as_asked,
    }
)
"""Field of a test -> function that returns whether an answer meets it. Regular expressions are
searched for all tests at once."""
