"""ColumnRule: what a column of a row may hold, and what is wrong with a value in it.

Standard library only. Knows nothing of the row formats that the columns make up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .messages import (
    ANSWER,
    PROMPT,
    TOOLS_FIX,
    WHOLE,
    ConversationPart,
    Fault,
    json_type,
    message_faults,
    tools_faults,
    turn_faults,
)

Row = dict[str, Any]
ListCheck = Callable[[list[Any], str, Row], Sequence[Fault]]
"""Return what is wrong with a list, given the name of its column and the whole row."""


@dataclass(frozen=True)
class ColumnRule:
    """Values that one column of a row may hold."""

    name: str
    wanted: str = "text"
    """The values in words."""
    fix: str = ""
    """What to do about another value; empty: give what is wanted."""
    takes_text: bool = True
    takes_boolean: bool = False
    check_list: ListCheck | None = None
    """Set if it may hold a list."""
    may_be_empty: bool = False


def text_or_messages(
    name: str, part: ConversationPart, *, may_be_empty: bool = False
) -> ColumnRule:
    """Return the rule of a column that holds text, or messages that are this part of a dialogue."""
    return ColumnRule(
        name,
        "text or a list of messages",
        check_list=_check_messages(part),
        may_be_empty=may_be_empty,
    )


def _check_messages(part: ConversationPart) -> ListCheck:
    return lambda messages, column, row: message_faults(messages, column, part, row.get("tools"))


MESSAGES = ColumnRule(
    "messages", "a list of messages", takes_text=False, check_list=_check_messages(WHOLE)
)
CONVERSATIONS = ColumnRule(
    "conversations",
    "a list of turns",
    takes_text=False,
    check_list=lambda turns, column, _row: turn_faults(turns, column),
)
PROMPT_ONLY = text_or_messages("prompt", PROMPT)
PROMPT_BEFORE_ANSWER = text_or_messages("prompt", PROMPT, may_be_empty=True)
COMPLETION = text_or_messages("completion", ANSWER)
SYSTEM = ColumnRule("system")
LABEL = ColumnRule(
    "label",
    "true or false",
    fix="write true for an answer that is wanted, false for one that is not",
    takes_text=False,
    takes_boolean=True,
)
TOOLS = ColumnRule(
    "tools",
    "a list of objects",
    fix=TOOLS_FIX,
    takes_text=False,
    check_list=lambda tools, _column, _row: tools_faults(tools),
)


def required_faults(row: Row, rule: ColumnRule) -> Sequence[Fault]:
    """Return what is wrong with the value of a column that the row must have."""
    value = row[rule.name]
    if isinstance(value, str) and rule.takes_text:
        if value.strip() or rule.may_be_empty:
            return ()
        return (Fault(rule.name, "empty", "is empty", "fill it in, or drop the row"),)
    return _other_faults(value, rule, row)


def optional_faults(row: Row, rule: ColumnRule) -> Sequence[Fault]:
    """Return what is wrong with the value of a column that the row need not have."""
    value = row.get(rule.name)
    if not value:
        return ()
    if isinstance(value, str) and rule.takes_text:
        if value.strip():
            return ()
        fix = "leave it out, or make it empty"
        return (Fault(rule.name, "empty", "holds only white space", fix),)
    return _other_faults(value, rule, row)


def _other_faults(value: object, rule: ColumnRule, row: Row) -> Sequence[Fault]:
    """Return what is wrong with a value that is no text, or where no text may be."""
    if isinstance(value, list) and rule.check_list:
        return rule.check_list(value, rule.name, row)
    if isinstance(value, bool) and rule.takes_boolean:
        return ()
    message = f"is {json_type(value)}, not {rule.wanted}"
    return (Fault(rule.name, "wrong_kind", message, rule.fix or f"give {rule.wanted}"),)


def pair_faults(chosen: Any, rejected: Any, *, shares_prompt: bool) -> Sequence[Fault]:
    """Return what is wrong with two answers of one type that shows only when both are seen.

    `shares_prompt` says that the prompt is the beginning of both.
    """
    if chosen == rejected:
        fix = "give two different answers"
        return (Fault("rejected", "same_answer", "is the chosen answer", fix),)
    if not shares_prompt:
        return ()
    end = shared_length(chosen, rejected)
    if isinstance(chosen, list):
        if end:
            return ()
        message = "does not begin with the same message as chosen"
        fix = "begin both with the same question, or give a prompt"
        return (Fault("rejected", "no_shared_prompt", message, fix),)
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not text[end:].strip():
            message = "is nothing but the beginning of the other answer"
            return (Fault(column, "empty", message, "give two whole answers, or a prompt"),)
    return ()


def shared_length(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return how many characters or messages both begin with, counted as TRL does.

    TRL leaves one space before the answers, and at least one character or message of each answer.
    """
    shared, limit = 0, min(len(chosen), len(rejected)) - 1
    while shared < limit:  # bisection: comparing slices is much faster than single characters
        middle = (shared + limit + 1) // 2
        if chosen[shared:middle] == rejected[shared:middle]:
            shared = middle
        else:
            limit = middle - 1
    if shared and chosen[shared - 1] == " ":
        return shared - 1
    return shared
