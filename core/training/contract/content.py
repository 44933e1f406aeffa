"""Content of a message: a text, or parts as vendors write them. Standard library only.

Text parts are read. A part that is no text, such as a picture, is named and left out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .row_columns import is_media

Unread = dict[str, bool]
"""Name of what is not read -> whether the model would learn something else were it read."""
TEXT_KEYS = ("text", "value", "content")
"""Keys of a text part under which its text may stand."""
HARMLESS_KEYS = frozenset(("type", "cache_control", "cachePoint", "annotations", "index", "id"))
"""Keys of a part that say nothing about what is learnt."""
HARMLESS_PARTS = frozenset(("cachePoint", "cache_point"))


@dataclass(frozen=True)
class ToolResult:
    """Answer of a tool, which some vendors write into the user's message."""

    text: str
    call_id: str
    name: str


@dataclass
class Content:
    """Contents of the parts of one message."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    """Calls of tools as they are written."""
    results: list[ToolResult] = field(default_factory=list)
    has_other: bool = False
    """True if a part is no text, so that an empty text is no mistake."""

    @property
    def text(self) -> str:
        return join_texts(self.texts)


def join_texts(texts: Sequence[str]) -> str:
    """Return texts as one; a line break parts two words that would become one."""
    joined = ""
    for text in texts:
        if joined and text and not joined[-1].isspace() and not text[0].isspace():
            joined += "\n"
        joined += text
    return joined


def read_parts(value: Any, place: str, unread: Unread) -> Content | None:
    """Return what a list of parts holds, or one part; None if some part cannot be one.

    Names what is left out in `unread`, under `place`, such as `messages[].content`.
    """
    content = Content()
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            content.texts.append(part)
        elif isinstance(part, dict) and part:
            _read_part(part, place, content, unread)
        else:
            return None
    return content


def _read_part(part: Mapping[str, Any], place: str, content: Content, unread: Unread) -> None:
    kind = _kind(part)
    reader = PARTS.get(kind)
    if reader and reader(part, content):
        for key, value in part.items():
            if value and key not in READ_KEYS and key not in HARMLESS_KEYS:
                unread[f"{place}[].{key}"] = is_media(key)
        return
    content.has_other = True
    unread[f"{place}[].{kind}"] = kind not in HARMLESS_PARTS


def _kind(part: Mapping[str, Any]) -> str:
    """Return the type of a part, or of one without a type the key that tells it."""
    if isinstance(part.get("type"), str):
        return str(part["type"])
    for key in part:
        if key in PARTS:
            return key
    for key in part:
        if key not in HARMLESS_KEYS:
            return key
    return next(iter(part))


def _read_text(part: Mapping[str, Any], content: Content) -> bool:
    for key in TEXT_KEYS:
        if isinstance(part.get(key), str):
            is_thought = part.get("thought") is True  # Gemini
            (content.reasoning if is_thought else content.texts).append(part[key])
            return True
    return False


def _read_reasoning(part: Mapping[str, Any], content: Content) -> bool:
    """Read the thoughts of Anthropic, LLaMA-Factory and Bedrock."""
    inner = part.get("reasoningContent", part)
    inner = inner.get("reasoningText", inner) if isinstance(inner, dict) else {}
    for key in ("thinking", "reasoning", *TEXT_KEYS):
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            content.reasoning.append(inner[key])
            return True
    return False


def _read_call(part: Mapping[str, Any], content: Content) -> bool:
    """Read a call of Anthropic, Bedrock or Gemini, or one as JSON text of LLaMA-Factory."""
    inner = part
    for key in ("toolUse", "functionCall", "function_call", "tool_call", "value"):
        if key in part:
            inner = part[key]
    if not isinstance(inner, dict):
        content.calls.append(inner)
        return isinstance(inner, str)
    call = {"name": inner.get("name"), "arguments": _first(inner, "input", "args", "arguments")}
    call_id = _first(inner, "id", "toolUseId")
    if call_id:
        call["id"] = call_id
    content.calls.append(call)
    return True


def _read_result(part: Mapping[str, Any], content: Content) -> bool:
    """Read the answer of a tool as Anthropic, Bedrock and Gemini write it."""
    inner = part
    for key in ("toolResult", "functionResponse", "function_response"):
        if isinstance(part.get(key), dict):
            inner = part[key]
    text = _result_text(_first(inner, "content", "response", "value"))
    if text is None:
        return False
    call_id = str(_first(inner, "tool_use_id", "toolUseId", "id") or "")
    content.results.append(ToolResult(text, call_id, str(inner.get("name") or "")))
    return True


def _result_text(value: Any) -> str | None:
    """Return the answer of a tool as text; None if it holds a part that is no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    texts = []
    for part in value if isinstance(value, list) else ():
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and "json" in part:
            texts.append(json.dumps(part["json"], ensure_ascii=False))
        else:
            return None
    return join_texts(texts)


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if fields.get(name) is not None:
            return fields[name]
    return None


PARTS: Mapping[str, Callable[[Mapping[str, Any], Content], bool]] = MappingProxyType(
    {
        "text": _read_text,
        "input_text": _read_text,
        "output_text": _read_text,
        "thinking": _read_reasoning,
        "reasoning": _read_reasoning,
        "reasoningContent": _read_reasoning,
        "tool_use": _read_call,
        "toolUse": _read_call,
        "tool_call": _read_call,
        "functionCall": _read_call,
        "function_call": _read_call,
        "tool_result": _read_result,
        "toolResult": _read_result,
        "functionResponse": _read_result,
        "function_response": _read_result,
    }
)
"""Type of a part, or the key that stands for it -> how it is read. All others are named."""
# fmt: off
READ_KEYS = frozenset((
    "text", "value", "content", "thinking", "reasoning", "reasoningContent", "thought", "input",
    "name", "toolUse", "toolResult", "tool_use_id", "functionCall", "function_call", "tool_call",
    "functionResponse", "function_response", "args", "arguments", "signature", "is_error",
    "thoughtSignature",
))
# fmt: on
"""Keys of parts that are read, or that only belong to a vendor's own protocol."""
