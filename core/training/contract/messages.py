"""Messages: their roles, and what must be true of them and of their order.

Standard library only. Changes no message; knows nothing of files, lines and tokenizers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_KEYS = ("role", "from", "author", "sender", "speaker")
"""Keys of a turn under which its role may stand."""
QUESTION_KEYS = ("human", "user", "input", "query", "question", "prompt", "instruction")
ANSWER_KEYS = ("assistant", "gpt", "output", "response", "answer", "bot", "model")
"""Keys of a pair, the element of a conversation that holds a question and its answer."""
ROLE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "system": "system",
        "developer": "developer",
        "user": "user",
        "human": "user",
        "prompter": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "model": "assistant",
        "ai": "assistant",
        "bot": "assistant",
        "chatbot": "assistant",
        "tool": "tool",
        "observation": "tool",
        "function": "tool",
        "function_response": "tool",
        "function_result": "tool",
        "tool_response": "tool",
        "tool_result": "tool",
        "ipython": "tool",
    }
)
"""Name of a role in files, in lower case -> role."""
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
LONGEST_REMEMBERED = 64
"""Messages of a conversation whose order of roles is cached; longer ones could fill the memory."""
LONGEST_SHOWN = 60
"""Characters of a value that a message to the user quotes."""
Message = dict[str, Any]


class Fault(NamedTuple):
    """One thing wrong with a row, in any line."""

    field: str
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        where = "" if self.field in ("row", "file") else f"{self.field}: "
        return f"{where}{self.message}; {self.fix}"


@dataclass(frozen=True, eq=False)
class ConversationPart:
    """Part of a conversation that a column holds, which decides where it must end.

    Compared by identity, as there are three of them and the check of every row looks one up.
    """

    ends_with_answer: bool
    is_whole: bool
    """False if another column holds the beginning or the end."""
    empty_fix: str


WHOLE = ConversationPart(True, True, empty_fix="give at least one question and one answer")
PROMPT = ConversationPart(False, False, empty_fix="give at least one message")
ANSWER = ConversationPart(True, False, empty_fix="give at least the answer")


def json_type(value: object) -> str:
    """Return what JSON calls the type of a value."""
    return JSON_TYPES.get(type(value), "an object")


def shown(value: object) -> str:
    """Return a value as a message to the user quotes it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def any_of(names: Sequence[str]) -> str:
    """Return names as `dpo, kto or orpo`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} or {names[-1]}"


def is_plain(turns: list[Any], part: ConversationPart) -> bool:
    """Return whether all turns are sound and hold nothing but a role and a text.

    Most conversations are of this kind, so a check spends its time here. Turns of any other kind
    are read turn by turn.
    """
    try:
        if "role" in turns[0]:
            names = [turn["role"] for turn in turns]
            texts = [turn["content"] for turn in turns]
        else:
            names = [turn["from"] for turn in turns]
            texts = [turn["value"] for turn in turns]
        roles = tuple([ROLE_NAMES[name] for name in names])
    except (TypeError, KeyError, IndexError):  # other keys, no objects, or no turns
        return False
    # A tool's answer needs the call before it, which a plain turn does not hold.
    if "tool" in roles or order_faults(roles, "", part):
        return False
    if set(map(type, texts)) != {str} or set(map(len, turns)) != {2}:
        return False
    return all(map(str.strip, texts))


def order_faults(roles: tuple[str, ...], column: str, part: ConversationPart) -> tuple[Fault, ...]:
    """Return what is wrong with who speaks when."""
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


def call_order_faults(
    messages: Sequence[Message],
    place: Callable[[int], str],
    part: ConversationPart,
    offered: frozenset[str],
) -> Iterator[Fault]:
    """Yield calls of tools that the row does not offer, and answers of tools without a call.

    A row without any tools may hold calls: some chat templates learn them that way. An answer may
    also hold its call in its text, as in the data of Hermes.
    """
    has_calls = not part.is_whole
    for index, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        has_calls = has_calls or message["role"] == "assistant"
        if message["role"] == "tool" and not has_calls:
            text = "a tool answers that was not called"
            yield Fault(place(index), "tool_without_call", text, "add the call before it")
        for call in calls:
            called = call["function"]["name"]
            if offered and called not in offered:
                text = f"the tool {shown(called)} is not in tools"
                yield Fault(place(index), "no_such_tool", text, "add it to tools")
