"""Reasons why a row cannot be put before a model, which name the message and what it lacks."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2.exceptions import TemplateError

from ..contract.row_reader import BadRow
from .answers import UnclearAnswer
from .chat import ChatTemplate, Conversation

MISSING_KEY = re.compile(r"has no attribute '(\w+)'")
"""In Jinja's words, of a value that a message or a tool lacks."""
WANTS_PARTS = re.compile(r"^'?str object'? has no (attribute|element)")
"""In Jinja's words, of a template that looks for parts inside of a text."""
KEYS_OF_MESSAGES = ("content", "reasoning_content", "thinking", "tool_call_id", "tool_calls")
KEYS_OF_FUNCTIONS = ("arguments", "description", "name", "parameters", "return", "type")
KEYS_OF_PARAMETERS = ("properties", "required")
MAX_CHARACTERS = 400


@contextmanager
def naming_faults(conversation: Conversation, template: ChatTemplate) -> Iterator[None]:
    """Turn what the block raises about a conversation into a BadRow that names the message."""
    try:
        yield
    except UnclearAnswer as error:
        raise BadRow(f"{_name(conversation, error.index)}: {error.reason}") from None
    except BadRow:
        raise
    except Exception as error:  # a template may raise anything
        raise BadRow(refusal(error, conversation, template)) from None


def refusal(error: Exception, conversation: Conversation, template: ChatTemplate) -> str:
    """Return why a chat template refuses a conversation."""
    index = None
    if isinstance(error, TemplateError | TypeError | KeyError):
        index = _refused_message(error, conversation, template)
    if found := MISSING_KEY.search(str(error)):
        owner = _owner_without(found[1], conversation, index)
        if owner:
            return f"{owner} has no {found[1]}, which the chat template needs"
    whom = "this row" if index is None else _name(conversation, index)
    if WANTS_PARTS.search(str(error)):
        return (
            f"the chat template takes the content of {whom} as a list of parts, as those of vision "
            "models do, not as text; choose a model of texts"
        )
    return f"the chat template refuses {whom}: {error}"[:MAX_CHARACTERS]


def _refused_message(
    error: Exception, conversation: Conversation, template: ChatTemplate
) -> int | None:
    """Return the index of the first message with which the template raises the same error."""
    messages = conversation.messages
    for end in range(1, len(messages) + 1):
        try:
            template.render(messages[:end], conversation.tools)
        except Exception as other:
            if str(other) == str(error):
                return end - 1
    return None


def _owner_without(key: str, conversation: Conversation, index: int | None) -> str:
    """Return the name of the message, call or tool that lacks a key; "" if none is known."""
    for name, part in _parts(key, conversation, index):
        if part.get(key) is None:
            return name
    return ""


def _parts(
    key: str, conversation: Conversation, index: int | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, part of a row) of each part that could have a key."""
    message: Mapping[str, Any] = {} if index is None else conversation.messages[index]
    is_named = key == "name" and message.get("role") == "tool"
    if index is not None and (is_named or key in KEYS_OF_MESSAGES):
        yield _name(conversation, index), message
        return
    if key not in (*KEYS_OF_FUNCTIONS, *KEYS_OF_PARAMETERS):
        return
    for number, call in enumerate(message.get("tool_calls") or ()):
        yield f"{conversation.names[index or 0]}.tool_calls[{number}].function", call["function"]
    for number, tool in enumerate(conversation.tools or ()):
        function, name = tool, f"tools[{number}]"
        for inner in ("function", "parameters") if key in KEYS_OF_PARAMETERS else ("function",):
            if isinstance(function.get(inner), dict):
                function, name = function[inner], f"{name}.{inner}"
        yield name, function


def _name(conversation: Conversation, index: int) -> str:
    return f"{conversation.names[index]} ({conversation.messages[index]['role']})"
