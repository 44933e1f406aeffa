"""Text that a tokenizer or a template would take for a special token: found, never changed."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

SPECIAL = re.compile(
    r"<(?:\|[\w .:-]{1,60}\|>"
    r"|｜[\w▁ .:-]{1,60}｜>"
    r"|/?s>"
    r"|(?:start|end)_of_turn>"
    r"|(?:bos|eos|pad|unk|mask)>"
    r"|</?SYS>>"
    r"|\|(?:im|start|end)_\w{1,40})"
    r"|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)
"""Special tokens of the common families: ChatML, Llama, Mistral, Gemma, Phi, DeepSeek."""
HINTS = (
    (b"<", re.compile(rb"<[|s/a-z\xef\\]")),
    (b"[", re.compile(rb"\[\\?/?[A-Z]")),
    (b"\\", re.compile(rb"\\u00[0-7]")),
)
"""Bytes without which a line holds no special token and no escaped U+0000, each with the byte that
it begins with: to look for that alone is faster, and many files have none."""


def may_hold_special_token(line: bytes) -> bool:
    """Return False if these bytes certainly hold no special token and no escaped U+0000."""
    return any(byte in line and hint.search(line) for byte, hint in HINTS)


def find_special_token(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (field, token) of the first special token in a row's texts."""
    for field, text in _texts(row, ""):
        if match := SPECIAL.search(text):
            return field, match.group()
    return None


def find_nul(row: Mapping[str, Any]) -> str | None:
    """Return the first field whose text holds the character U+0000."""
    for field, text in _texts(row, ""):
        if "\0" in text:
            return field
    return None


def _texts(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Yield (its place, the text) of every text inside a value, in order."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts(each, f"{name}[{index}]")
