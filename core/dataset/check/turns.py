"""What a conversation must be: known roles, turns that alternate, answers that are there, tools that exist.

Each check gives the faults of one value, in the order of the value. Knows nothing of files and lines.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from core.dataset.report import Fault

ROLES = ("system", "developer", "user", "assistant", "tool")
KNOWN_ROLES = frozenset(ROLES)
SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""What ShareGPT calls the roles."""
JSON_WORDS: Mapping[type, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
}
MESSAGE = 'write {"role": "user", "content": "..."}'
ROLES_REMEMBERED = 64
"""Longer conversations are judged anew each time, so that no file can fill the memory."""
MAP_TURNS = "these are messages: map conversations to messages"
TURN = 'write {"from": "human", "value": "..."}'


@dataclass(frozen=True)
class Part:
    """Which part of a conversation a column holds, and so where it must end."""

    ends_with_answer: bool
    is_whole: bool
    """False if it continues, or is continued in, another column."""
    empty_fix: str


WHOLE = Part(
    ends_with_answer=True, is_whole=True, empty_fix="give at least one question and one answer"
)
PROMPT = Part(ends_with_answer=False, is_whole=False, empty_fix="give at least one message")
ANSWER = Part(ends_with_answer=True, is_whole=False, empty_fix="give at least the answer")


def message_faults(
    messages: list[Any], column: str, part: Part, tools: object = None
) -> Sequence[Fault]:
    """What is wrong with a list of messages, in a row that offers these tools."""
    return (
        () if _is_plain(messages, part) else tuple(_message_faults(messages, column, part, tools))
    )


def turn_faults(turns: list[Any], column: str) -> Sequence[Fault]:
    """What is wrong with a ShareGPT conversation."""
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            fix = MAP_TURNS if isinstance(turn, dict) and "role" in turn else TURN
            return (Fault(f"{column}[{index}]", "not_message", "is not a turn", fix),)
        if not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT_ROLES:
            fault = f"{_shown(turn['from'])} is not a role"
            return (
                Fault(
                    f"{column}[{index}].from",
                    "unknown_role",
                    fault,
                    f"use {', '.join(SHAREGPT_ROLES)}",
                ),
            )
    messages = [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    return message_faults(messages, column, WHOLE)


def tools_fault(tools: object) -> Fault | None:
    """What is wrong with a row's list of tools."""
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        return None
    fix = 'give a list of {"type": "function", "function": {...}}'
    return Fault("tools", "wrong_kind", f"is {kind_of_value(tools)}, not a list of objects", fix)


def kind_of_value(value: object) -> str:
    """What JSON calls a value's type."""
    return JSON_WORDS.get(type(value), "an object")


def _is_plain(messages: list[Any], part: Part) -> bool:
    """True if all messages are a role and a text and nothing is wrong with them. The quick way for most rows."""
    try:
        roles = tuple([message["role"] for message in messages])
        texts = [message["content"] for message in messages]
        is_sound = "tool" not in roles and not _order_faults(roles, "", part)
    except (TypeError, KeyError):  # not even messages, or a role that is no text
        return False
    return (
        is_sound
        and set(map(type, texts)) == {str}
        and all(map(str.strip, texts))
        and set(map(len, messages)) == {2}
    )


def _message_faults(messages: list[Any], column: str, part: Part, tools: object) -> Iterator[Fault]:
    if not messages:
        yield Fault(column, "empty", "has no messages", part.empty_fix)
        return
    is_sound = True
    for index, message in enumerate(messages):
        for fault in _one_message_faults(message, f"{column}[{index}]"):
            is_sound = False
            yield fault
    if is_sound:
        yield from _order_faults(tuple(message["role"] for message in messages), column, part)
        yield from _tool_faults(messages, column, part, tools)


def _one_message_faults(message: Any, name: str) -> Iterator[Fault]:
    if not isinstance(message, dict) or "role" not in message:
        yield Fault(name, "not_message", "is not a message", MESSAGE)
    elif not isinstance(message["role"], str) or message["role"] not in ROLES:
        yield Fault(
            f"{name}.role",
            "unknown_role",
            f"{_shown(message['role'])} is not a role",
            f"use {', '.join(ROLES)}",
        )
    elif calls := message.get("tool_calls"):
        yield from _call_faults(calls, f"{name}.tool_calls")
        if not isinstance(message.get("content", ""), str | None):
            yield Fault(f"{name}.content", "wrong_kind", "is not text", "give the text as a string")
    elif not isinstance(content := message.get("content"), str):
        fix = (
            "join its parts into one string"
            if isinstance(content, list)
            else "give the text as a string"
        )
        yield Fault(f"{name}.content", "wrong_kind", f"is {kind_of_value(content)}, not text", fix)
    elif not content.strip() and message["role"] != "system":
        what = "an empty answer" if message["role"] == "assistant" else "is empty"
        yield Fault(f"{name}.content", "empty", what, "fill it in, or drop the row")


def _call_faults(calls: Any, name: str) -> Iterator[Fault]:
    fix = 'write [{"type": "function", "function": {"name": "...", "arguments": {...}}}]'
    if not isinstance(calls, list):
        yield Fault(name, "wrong_kind", f"is {kind_of_value(calls)}, not a list of calls", fix)
        return
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield Fault(f"{name}[{index}]", "not_call", "names no function", fix)
        elif not _is_arguments(function.get("arguments")):
            yield Fault(
                f"{name}[{index}]", "not_arguments", "its arguments are no JSON object", fix
            )


def _is_arguments(value: object) -> bool:
    """An object, or one written as text, as OpenAI does."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return value is None or isinstance(value, dict)


def _order_faults(roles: tuple[str, ...], column: str, part: Part) -> tuple[Fault, ...]:
    """What is wrong with who speaks when. Raises TypeError for roles that are no texts."""
    if not roles or not KNOWN_ROLES.issuperset(roles):
        return (Fault(column, "unknown_role", "holds an unknown role", f"use {', '.join(ROLES)}"),)
    return (_remembered_order if len(roles) <= ROLES_REMEMBERED else _judge_order)(
        roles, column, part
    )


def _judge_order(roles: tuple[str, ...], column: str, part: Part) -> tuple[Fault, ...]:
    faults = []
    if part.ends_with_answer and "assistant" not in roles:
        faults.append(
            Fault(column, "no_answer", "has no assistant message", "add the answer to learn")
        )
    elif part.ends_with_answer and roles[-1] != "assistant":
        fault = f"ends with the {roles[-1]}'s turn"
        faults.append(
            Fault(
                column,
                "no_last_answer",
                fault,
                "add the assistant's answer, or remove the last turn",
            )
        )
    pairs = enumerate(pairwise(roles), start=1)
    if second := next((index for index, pair in pairs if pair == ("user", "user")), 0):
        message = "the user speaks twice in a row"
        faults.append(
            Fault(
                f"{column}[{second}]", "two_user_turns", message, "join the two, or add the answer"
            )
        )
    return tuple(faults)


_remembered_order = lru_cache(maxsize=4096)(
    _judge_order
)  # the same few orders come again and again


def _tool_faults(
    messages: Sequence[Any], column: str, part: Part, tools: object
) -> Iterator[Fault]:
    """Calls of tools that the row does not offer, and answers of tools that nobody called.

    A row without any tools is not faulted for its calls: some templates learn them that way.
    """
    offered = _tool_names(tools)
    has_calls = not part.is_whole
    for index, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        has_calls = has_calls or bool(calls)
        if message["role"] == "tool" and not has_calls:
            fix = "add the call before it"
            yield Fault(
                f"{column}[{index}]", "tool_without_call", "a tool answers that was not called", fix
            )
        for name in (call["function"]["name"] for call in calls):
            if offered and name not in offered:
                fix = "add it to tools"
                yield Fault(
                    f"{column}[{index}]",
                    "no_such_tool",
                    f"the tool {_shown(name)} is not in tools",
                    fix,
                )


def _tool_names(tools: object) -> frozenset[str]:
    listed = tools if isinstance(tools, list) else []
    functions = [tool.get("function", tool) for tool in listed if isinstance(tool, dict)]
    return frozenset(
        str(function.get("name")) for function in functions if isinstance(function, dict)
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
