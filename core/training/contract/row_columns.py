"""Checks of single columns of a row: text, messages, turns, tools, true or false.

Standard library only. Knows nothing of the row formats that the columns make up.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .messages import ConversationPart, Fault, json_type, message_faults, tools_faults, turn_faults

Row = dict[str, Any]
ColumnCheck = Callable[[Any, str, Row], Sequence[Fault]]
"""Return what is wrong with a value, given the name of its column and the whole row."""


def text(value: Any, name: str, _row: Row) -> Sequence[Fault]:
    """Return what is wrong with a value that must be text."""
    return _text_faults(value, name)


def messages(part: ConversationPart) -> ColumnCheck:
    """Return a check of messages that are this part of a conversation."""

    def check(value: Any, name: str, row: Row) -> Sequence[Fault]:
        if isinstance(value, list):
            return message_faults(value, name, part, row.get("tools"))
        return _wrong_kind(value, name, "a list of messages")

    return check


def text_or_messages(part: ConversationPart, *, may_be_empty: bool = False) -> ColumnCheck:
    """Return a check of text, or of messages that are this part of a conversation."""

    def check(value: Any, name: str, row: Row) -> Sequence[Fault]:
        if isinstance(value, list):
            return message_faults(value, name, part, row.get("tools"))
        return _text_faults(value, name, "text or a list of messages", may_be_empty)

    return check


def turns(value: Any, name: str, _row: Row) -> Sequence[Fault]:
    """Return what is wrong with a value that must be a ShareGPT conversation."""
    if isinstance(value, list):
        return turn_faults(value, name)
    return _wrong_kind(value, name, "a list of turns")


def tools(value: Any, _name: str, _row: Row) -> Sequence[Fault]:
    """Return what is wrong with a value that must be a list of tools."""
    return tools_faults(value)


def label(value: Any, name: str, _row: Row) -> Sequence[Fault]:
    """Return what is wrong with a value that must be true or false."""
    if isinstance(value, bool):
        return ()
    fix = "write true for an answer that is wanted, false for one that is not"
    return _wrong_kind(value, name, "true or false", fix)


def _text_faults(
    value: object, name: str, wanted: str = "text", may_be_empty: bool = False
) -> Sequence[Fault]:
    if not isinstance(value, str):
        return _wrong_kind(value, name, wanted)
    if value.strip() or may_be_empty:
        return ()
    return (Fault(name, "empty", "is empty", "fill it in, or drop the row"),)


def _wrong_kind(value: object, name: str, wanted: str, fix: str = "") -> Sequence[Fault]:
    message = f"is {json_type(value)}, not {wanted}"
    return (Fault(name, "wrong_kind", message, fix or f"give {wanted}"),)


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
    for column, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer[end:].strip():
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
