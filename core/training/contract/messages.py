"""Conversations: the roles, and what must be true of messages, ShareGPT turns and tools.

Standard library only. Changes no message; knows nothing of files, lines and tokenizers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")
KNOWN_ROLES = frozenset(ROLES)
SHAREGPT_ROLES: Mapping[str, str] = MappingProxyType(
    {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "assistant": "assistant",
        "system": "system",
        "tool": "tool",
        "observation": "tool",
    }
)
"""ShareGPT's name of a role -> role."""
JSON_TYPES: Mapping[type, str] = MappingProxyType(
    {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
    }
)
MESSAGE = 'write {"role": "user", "content": "..."}'
TURN = 'write {"from": "human", "value": "..."}'
MAP_TURNS = "these are messages: map conversations to messages"
CALL = 'write [{"type": "function", "function": {"name": "...", "arguments": {...}}}]'
TOOLS_FIX = 'give a list of {"type": "function", "function": {...}}'
LONGEST_REMEMBERED = 64
"""Messages of a conversation whose order of roles is cached; longer ones could fill the memory."""
LONGEST_SHOWN = 60
"""Characters of a value that a message to the user quotes."""


class Fault(NamedTuple):
    """One thing wrong with a row, in any line."""

    field: str
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        where = "" if self.field in ("row", "file") else f"{self.field}: "
        return f"{where}{self.message}; {self.fix}"


@dataclass(frozen=True)
class ConversationPart:
    """Part of a conversation that a column holds, which decides where it must end."""

    ends_with_answer: bool
    is_whole: bool
    """False if another column holds the beginning or the end."""
    empty_fix: str


WHOLE = ConversationPart(True, True, empty_fix="give at least one question and one answer")
PROMPT = ConversationPart(False, False, empty_fix="give at least one message")
ANSWER = ConversationPart(True, False, empty_fix="give at least the answer")


def message_faults(
    messages: list[Any], column: str, part: ConversationPart, tools: object = None
) -> Sequence[Fault]:
    """Return what is wrong with a list of messages in a row that offers these tools."""
    if _is_plain(messages, part):
        return ()
    return tuple(_message_faults(messages, column, part, tools))


def turn_faults(turns: list[Any], column: str) -> Sequence[Fault]:
    """Return what is wrong with a ShareGPT conversation."""
    for index, turn in enumerate(turns):
        name = f"{column}[{index}]"
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            is_message = isinstance(turn, dict) and "role" in turn
            return (Fault(name, "not_message", "is not a turn", MAP_TURNS if is_message else TURN),)
        if not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT_ROLES:
            return (_unknown_role(f"{name}.from", turn["from"], SHAREGPT_ROLES),)
    return message_faults(as_messages(turns), column, WHOLE)


def as_messages(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ShareGPT turns as messages."""
    return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]


def tools_faults(tools: object) -> Sequence[Fault]:
    """Return what is wrong with a row's list of tools."""
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        return ()
    message = f"is {json_type(tools)}, not a list of objects"
    return (Fault("tools", "wrong_kind", message, TOOLS_FIX),)


def json_type(value: object) -> str:
    """Return what JSON calls the type of a value."""
    return JSON_TYPES.get(type(value), "an object")


def _is_plain(messages: list[Any], part: ConversationPart) -> bool:
    """Return whether all messages are sound and hold a role and a text only.

    Most messages are of this kind, so a check spends its time here.
    """
    try:
        roles = tuple([message["role"] for message in messages])
        texts = [message["content"] for message in messages]
        # A tool's answer needs the call before it, which a plain message does not hold.
        if "tool" in roles or _order_faults(roles, "", part):
            return False
    except (TypeError, KeyError):  # not even messages, or a role that is no text
        return False
    if set(map(type, texts)) != {str} or set(map(len, messages)) != {2}:
        return False
    return all(map(str.strip, texts))


def _message_faults(
    messages: list[Any], column: str, part: ConversationPart, tools: object
) -> Iterator[Fault]:
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
        yield from _call_order_faults(messages, column, part, tools)


def _one_message_faults(message: Any, name: str) -> Iterator[Fault]:
    if not isinstance(message, dict) or "role" not in message:
        yield Fault(name, "not_message", "is not a message", MESSAGE)
        return
    role, content = message["role"], message.get("content")
    calls = message.get("tool_calls")
    if not isinstance(role, str) or role not in KNOWN_ROLES:
        yield _unknown_role(f"{name}.role", role, ROLES)
    elif calls:
        yield from _call_faults(calls, f"{name}.tool_calls")
        if not isinstance(content, str | None):
            yield Fault(f"{name}.content", "wrong_kind", "is not text", "give the text as a string")
    elif not isinstance(content, str):
        fix = "give the text as a string"
        if isinstance(content, list):
            fix = "join its parts into one string"
        yield Fault(f"{name}.content", "wrong_kind", f"is {json_type(content)}, not text", fix)
    elif not content.strip() and role != "system":
        message_text = "an empty answer" if role == "assistant" else "is empty"
        yield Fault(f"{name}.content", "empty", message_text, "fill it in, or drop the row")


def _unknown_role(field: str, role: object, known: Sequence[str] | Mapping[str, str]) -> Fault:
    return Fault(field, "unknown_role", f"{_shown(role)} is not a role", f"use {', '.join(known)}")


def _call_faults(calls: Any, name: str) -> Iterator[Fault]:
    if not isinstance(calls, list):
        yield Fault(name, "wrong_kind", f"is {json_type(calls)}, not a list of calls", CALL)
        return
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield Fault(f"{name}[{index}]", "not_call", "names no function", CALL)
        elif not _is_arguments(function.get("arguments")):
            message = "its arguments are no JSON object"
            yield Fault(f"{name}[{index}]", "not_arguments", message, CALL)


def _is_arguments(value: object) -> bool:
    """Return whether a value is an object, or the JSON text of one, as OpenAI writes it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return value is None or isinstance(value, dict)


def _order_faults(roles: tuple[str, ...], column: str, part: ConversationPart) -> tuple[Fault, ...]:
    """Return what is wrong with who speaks when. Raises TypeError for roles that are no texts."""
    if not roles or not KNOWN_ROLES.issuperset(roles):
        return (Fault(column, "unknown_role", "holds an unknown role", f"use {', '.join(ROLES)}"),)
    if len(roles) > LONGEST_REMEMBERED:
        return _find_order_faults(roles, column, part)
    return _remembered_order_faults(roles, column, part)


def _find_order_faults(
    roles: tuple[str, ...], column: str, part: ConversationPart
) -> tuple[Fault, ...]:
    faults = []
    if part.ends_with_answer and "assistant" not in roles:
        fix = "add the answer to learn"
        faults.append(Fault(column, "no_answer", "has no assistant message", fix))
    elif part.ends_with_answer and roles[-1] != "assistant":
        fix = "add the assistant's answer, or remove the last turn"
        faults.append(Fault(column, "no_last_answer", f"ends with the {roles[-1]}'s turn", fix))
    for index, pair in enumerate(pairwise(roles), start=1):
        if pair == ("user", "user"):
            message, fix = "the user speaks twice in a row", "join the two, or add the answer"
            faults.append(Fault(f"{column}[{index}]", "two_user_turns", message, fix))
            break
    return tuple(faults)


# The same few orders of roles occur in nearly every row.
_remembered_order_faults = lru_cache(maxsize=4096)(_find_order_faults)


def _call_order_faults(
    messages: Sequence[Any], column: str, part: ConversationPart, tools: object
) -> Iterator[Fault]:
    """Yield calls of tools that the row does not offer, and answers of tools without a call.

    A row without any tools may hold calls: some chat templates learn them that way.
    """
    offered = _tool_names(tools)
    has_calls = not part.is_whole
    for index, message in enumerate(messages):
        name = f"{column}[{index}]"
        calls = message.get("tool_calls") or ()
        has_calls = has_calls or bool(calls)
        if message["role"] == "tool" and not has_calls:
            text = "a tool answers that was not called"
            yield Fault(name, "tool_without_call", text, "add the call before it")
        for call in calls:
            called = call["function"]["name"]
            if offered and called not in offered:
                text = f"the tool {_shown(called)} is not in tools"
                yield Fault(name, "no_such_tool", text, "add it to tools")


def _tool_names(tools: object) -> frozenset[str]:
    names = []
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict):
            names.append(str(function.get("name")))
    return frozenset(names)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
