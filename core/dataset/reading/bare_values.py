"""Rows that are no objects but say what they are: a JSON string, or a list of messages.

Puts each into an object with one column and changes none of its bytes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import orjson

Bare = Literal["texts", "conversations", ""]
"""Rows that are no objects: JSON strings, or lists of messages. "" stands for objects."""

TEXT = b'{"text": %b}'
MESSAGES = b'{"messages": %b}'
TURNS = b'{"conversations": %b}'
MESSAGE_KEYS = frozenset(
    (
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "reasoning_content",
        "weight",
    )
)
"""Keys of a message; an object with others is more than a message."""
TURN_KEYS = frozenset(("from", "value", "weight"))


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages or ShareGPT turns."""
    return _template_of_list(value) is not None


def is_plain_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages or turns with no keys but the usual ones."""
    if not is_conversation(value):
        return False
    return all(each.keys() <= MESSAGE_KEYS or each.keys() <= TURN_KEYS for each in value)


def bare_kind(values: Sequence[Any]) -> Bare:
    """Return what all of these values are, "" if they are not of one kind or none of these."""
    if values and all(isinstance(each, str) for each in values):
        return "texts"
    if values and all(map(is_conversation, values)):
        return "conversations"
    return ""


def as_row(line: bytes) -> bytes:
    """Return a line as an object, if it is a text or a conversation; otherwise the line itself."""
    if not line.lstrip().startswith((b'"', b"[")):
        return line
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    template = TEXT if isinstance(value, str) else _template_of_list(value)
    return template % line.strip() if template else line


def _template_of_list(value: Any) -> bytes | None:
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(each, dict) for each in value):
        return None
    if all("role" in each for each in value):
        return MESSAGES
    if all("from" in each and "value" in each for each in value):
        return TURNS
    return None
