"""Suites: tests of a model, each a prompt with what must be true of the answer.

Reads one test from the fields of its line; suite_files.py reads files. Asks no model.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_TEXT = 20_000
"""Characters of one text of a test."""
MAX_PATTERN = 1000
"""Characters of a regular expression."""
MAX_LISTED = 100
"""Texts, keys or choices in one list of a test."""
MAX_NEW_TOKENS = 64
"""Longest answer in tokens, unless a test asks for more."""
MOST_NEW_TOKENS = 1024
JSON_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "text": (str,),
        "string": (str,),
        "number": (int, float),
        "integer": (int,),
        "boolean": (bool,),
        "list": (list,),
        "array": (list,),
        "object": (dict,),
        "any": (object,),
    }
)
"""Type of a JSON value, as a suite names it."""
SHOWN_CHARACTERS = 60
LARGEST_NUMBER = 1e300
Json = Mapping[str, Any]


class SuiteFault(NamedTuple):
    """One thing that is wrong with a suite, and what to do about it."""

    line: int
    """1-based in its file; 0 for the file as a whole."""
    field: str
    message: str
    fix: str


class UnusableSuite(Exception):
    """Suite that cannot be used. Names everything that is wrong with it."""

    def __init__(self, name: str, faults: Sequence[SuiteFault]) -> None:
        self.name = name
        self.faults = tuple(faults)
        super().__init__(f"{name}: {faults[0].field} {faults[0].message}; {faults[0].fix}")


class Wrong(Exception):
    """Value of a test that cannot be used: (what it is, what to write)."""


@dataclass(frozen=True)
class ToolCall:
    """Call of a tool that an answer must make."""

    name: str
    arguments: Json | None = None
    """None accepts any."""


@dataclass(frozen=True)
class SuiteTest:
    """Prompt, and what must be true of the answer; all of it must be, where there is more."""

    messages: tuple[Json, ...]
    line: int = 0
    """1-based in its file; 0 if it is in none."""
    category: str = ""
    tools: tuple[Json, ...] = ()
    """Tools that the model may call."""
    max_new_tokens: int = MAX_NEW_TOKENS
    exact: tuple[str, ...] = ()
    """The answer is one of these."""
    contains: tuple[str, ...] = ()
    """The answer contains each of these, in upper or lower case."""
    not_contains: tuple[str, ...] = ()
    regex: str = ""
    """Regular expression of Python that is found in the answer."""
    number: float | None = None
    """Last number in the answer."""
    tolerance: float = 0.0
    json: Mapping[str, str] | None = None
    """Keys of the JSON object that the answer is, with their types."""
    choice: tuple[str, ...] = ()
    """Answers whose likelihood is compared."""
    answer: int = 0
    """Index of the right choice."""
    tool_call: ToolCall | None = None
    refusal: bool | None = None
    """True if the answer must refuse, False if it must not."""
    fields: Json = field(default_factory=dict, compare=False)
    """Test as it was written."""

    @property
    def prompt(self) -> str:
        """Last message, which is shown as the question."""
        return str(self.messages[-1].get("content") or "")

    @property
    def expected(self) -> str:
        """Text that says what passes, to show beside an answer."""
        asked = [name for name in DESCRIPTIONS if name in self.fields]
        return "; ".join(DESCRIPTIONS[name](self) for name in asked)


@dataclass(frozen=True)
class Suite:
    """Tests under one name."""

    name: str
    tests: tuple[SuiteTest, ...]

    @property
    def sha256(self) -> str:
        """Hash of the tests, the same under any name and in any layout of the file."""
        written = json.dumps([test.fields for test in self.tests], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()


DESCRIPTIONS: Mapping[str, Callable[[SuiteTest], str]] = MappingProxyType(
    {
        "exact": lambda test: " or ".join(test.exact),
        "contains": lambda test: f"contains {', '.join(test.contains)}",
        "not_contains": lambda test: f"does not contain {', '.join(test.not_contains)}",
        "regex": lambda test: f"matches {test.regex}",
        "number": lambda test: f"the number {test.number:g}",
        "json": lambda test: f"a JSON object with {', '.join(test.json or ())}",
        "choice": lambda test: test.choice[test.answer],
        "tool_call": lambda test: f"calls {test.tool_call and test.tool_call.name}",
        "refusal": lambda test: "refuses" if test.refusal else "does not refuse",
    }
)
"""Field that says what must be true of an answer -> that in words."""
CONDITIONS = frozenset(DESCRIPTIONS)


def read_test(fields: object, line: int) -> tuple[SuiteTest | None, list[SuiteFault]]:
    """Return (the test in the fields of a line, what is wrong with them)."""
    if not isinstance(fields, dict):
        fix = 'write {"prompt": "...", "contains": "..."}'
        return None, [SuiteFault(line, "test", f"is {_shown(fields)}, not an object", fix)]
    faults = []
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in READERS:
            known = ", ".join(READERS)
            faults.append(SuiteFault(line, str(name)[:40], "is unknown", f"use one of {known}"))
            continue
        try:
            values[name] = READERS[name](value)
        except Wrong as wrong:
            message, fix = wrong.args
            faults.append(SuiteFault(line, name, message, fix))
    if not faults:
        faults += _faults_between(fields, line)
    if faults:
        return None, faults
    return _test_of(values, fields, line), []


def _faults_between(fields: Json, line: int) -> list[SuiteFault]:
    """Return what is wrong with fields that are sound one by one."""
    found = []
    if ("prompt" in fields) == ("messages" in fields):
        state = "and messages are both there" if "prompt" in fields else "is missing"
        found.append(SuiteFault(line, "prompt", state, "give one of prompt and messages"))
    if not fields.keys() & CONDITIONS:
        fix = f"say what must be true: {', '.join(sorted(CONDITIONS))}"
        found.append(SuiteFault(line, "test", "passes with any answer", fix))
    if "choice" in fields and fields.keys() & CONDITIONS - {"choice"}:
        fix = "leave out the other conditions"
        found.append(SuiteFault(line, "choice", "cannot be combined", fix))
    found += _faults_of_parts(fields, line)
    return found


def _faults_of_parts(fields: Json, line: int) -> list[SuiteFault]:
    found = []
    for part, whole in (("tolerance", "number"), ("answer", "choice")):
        if part in fields and whole not in fields:
            fix = f"add {whole}, or leave it out"
            found.append(SuiteFault(line, part, f"is there without {whole}", fix))
    if "choice" in fields and fields.get("answer") is None:
        fix = "give the right choice, or its number from 0"
        found.append(SuiteFault(line, "answer", "is missing", fix))
    elif "choice" in fields and _answer_index(fields) is None:
        message = f"{_shown(fields['answer'])} is none of the choices"
        found.append(SuiteFault(line, "answer", message, "give one of them, or its number from 0"))
    return found


def _answer_index(fields: Json) -> int | None:
    choices, answer = list(fields["choice"]), fields["answer"]
    if isinstance(answer, str):
        return choices.index(answer) if answer in choices else None
    return answer if 0 <= answer < len(choices) else None


def _test_of(values: Mapping[str, Any], fields: Json, line: int) -> SuiteTest:
    known = dict(values)
    prompt, system = known.pop("prompt", None), known.pop("system", None)
    messages = known.pop("messages", ())
    if prompt is not None:
        messages = ({"role": "user", "content": prompt},)
    if system is not None:
        messages = ({"role": "system", "content": system}, *messages)
    if "choice" in known:
        known["answer"] = _answer_index(fields)
    return SuiteTest(messages=messages, line=line, fields=dict(fields), **known)


# Values of single fields


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"is {_shown(value)}, not a text", "write a text")
    if len(value) > MAX_TEXT:
        raise Wrong(f"has {len(value):,} characters", f"shorten it to {MAX_TEXT:,}")
    return value


def _category(value: object) -> str:
    name = _text(value)
    if len(name) > SHOWN_CHARACTERS:
        raise Wrong(f"has {len(name):,} characters", f"shorten it to {SHOWN_CHARACTERS}")
    return name


def _texts(value: object) -> tuple[str, ...]:
    """Return one text or a list of them as a tuple."""
    items = value if isinstance(value, list) else [value]
    if not 0 < len(items) <= MAX_LISTED:
        raise Wrong(f"has {len(items):,} texts", f"give 1 to {MAX_LISTED}")
    return tuple(map(_text, items))


def _messages(value: object) -> tuple[Json, ...]:
    fix = 'write [{"role": "user", "content": "..."}]'
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LISTED:
        raise Wrong(f"is {_shown(value)}, not a list of messages", fix)
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Wrong(f"holds {_shown(message)}, which has no role", fix)
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise Wrong(f"holds a content that is {_shown(content)}", "write it as a text")
        if len(content or "") > MAX_TEXT:
            raise Wrong(f"has {len(content or ''):,} characters", f"shorten it to {MAX_TEXT:,}")
    if value[-1]["role"] not in ("user", "tool"):
        raise Wrong(f"ends with {_shown(value[-1]['role'])}", "end with what the user says")
    return tuple(value)


def _tools(value: object) -> tuple[Json, ...]:
    if isinstance(value, list) and 0 < len(value) <= MAX_LISTED and all(map(_is_object, value)):
        return tuple(value)
    fix = 'write [{"type": "function", "function": {"name": "...", ...}}]'
    raise Wrong(f"is {_shown(value)}, not a list of tools", fix)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _pattern(value: object) -> str:
    pattern = _text(value)
    if len(pattern) > MAX_PATTERN:
        raise Wrong(f"has {len(pattern):,} characters", f"shorten it to {MAX_PATTERN:,}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise Wrong(f"is no regular expression: {error}", "correct it") from None
    return pattern


def _number(value: object) -> float:
    is_flag = isinstance(value, bool)  # which is an integer in Python
    if isinstance(value, int | float) and not is_flag and abs(value) < LARGEST_NUMBER:
        return float(value)
    raise Wrong(f"is {_shown(value)}, not a number", "write a number such as 42")


def _tolerance(value: object) -> float:
    number = _number(value)
    if number < 0:
        raise Wrong(f"is {number:g}", "give 0 or more")
    return number


def _json_keys(value: object) -> Mapping[str, str]:
    if isinstance(value, str | list):
        return dict.fromkeys(_texts(value), "any")
    if not isinstance(value, dict) or len(value) > MAX_LISTED:
        raise Wrong(f"is {_shown(value)}, not keys", 'write ["name"] or {"name": "string"}')
    for kind in value.values():
        if not isinstance(kind, str) or kind not in JSON_TYPES:
            raise Wrong(f"names the type {_shown(kind)}", f"use {', '.join(JSON_TYPES)}")
    return value


def _choices(value: object) -> tuple[str, ...]:
    choices = _texts(value)
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise Wrong("needs two or more different texts", 'write ["Paris", "Rome"]')
    return choices


def _answer(value: object) -> str | int:
    if isinstance(value, str) or type(value) is int:
        return value
    raise Wrong(f"is {_shown(value)}", "give the right choice, or its number from 0")


def _tool_call(value: object) -> ToolCall:
    fix = 'write {"name": "...", "arguments": {...}}'
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise Wrong(f"is {_shown(value)}, not a call", fix)
    arguments = value.get("arguments")
    if value.keys() - {"name", "arguments"} or not isinstance(arguments, dict | None):
        raise Wrong(f"is {_shown(value)}, not a name with arguments", fix)
    return ToolCall(value["name"], arguments)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"is {_shown(value)}", "write true or false")
    return value


def _new_tokens(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_NEW_TOKENS:
        raise Wrong(f"is {_shown(value)}", f"give 1 to {MOST_NEW_TOKENS:,}")
    return value


READERS: Mapping[str, Callable[[object], Any]] = MappingProxyType(
    {
        "prompt": _text,
        "messages": _messages,
        "system": _text,
        "tools": _tools,
        "category": _category,
        "max_new_tokens": _new_tokens,
        "exact": _texts,
        "contains": _texts,
        "not_contains": _texts,
        "regex": _pattern,
        "number": _number,
        "tolerance": _tolerance,
        "json": _json_keys,
        "choice": _choices,
        "answer": _answer,
        "tool_call": _tool_call,
        "refusal": _flag,
    }
)
"""Field of a test -> function that returns its value, or raises Wrong."""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
