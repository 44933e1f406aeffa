"""Text that a tokenizer or a template would take for a sign of its own: found and named, never changed."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

SPECIAL = re.compile(
    r"<(?:\|[\w .:-]{1,60}\|>|｜[\w▁ .:-]{1,60}｜>|/?s>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk|mask)>"
    r"|</?SYS>>|\|(?:im|start|end)_\w{1,40})|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)
"""Special tokens of the common families: ChatML, Llama, Mistral, Gemma, Phi, DeepSeek."""
SIGNS = (re.compile(rb"<[|s/a-z\xef\\]"), re.compile(rb"\[\\?/?[A-Z]"), re.compile(rb"\\u00[0-7]"))
"""Bytes without which a line holds nothing special, escapes considered. Each begins with one byte to look for, which
is what makes the search fast."""


def may_hold_special(line: bytes) -> bool:
    """False if there is certainly no special token in these bytes, and no escaped U+0000."""
    return any(sign.search(line) for sign in SIGNS)


def special_tokens(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """(field, token) of the first special token in a row's texts."""
    for field, text in _texts(row, ""):
        if found := SPECIAL.search(text):
            return field, found.group()
    return None


def has_nul(row: Mapping[str, Any]) -> str | None:
    """The first field whose text holds the character U+0000."""
    return next((field for field, text in _texts(row, "") if "\0" in text), None)


def _texts(value: object, name: str) -> Iterator[tuple[str, str]]:
    """(where it stands, text) for every text inside a value, in order."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts(each, f"{name}[{index}]")
