"""Values of single columns of a row: what they are, and their faults. Standard library only.

Knows nothing of the row formats that the columns make up.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .messages import ROLE_KEYS, Fault, json_type

Row = dict[str, Any]
ANSWER_MARK = re.compile(
    r"(?:^|\n)(?:#+ *)?(?:Assistant|ASSISTANT|AI|Bot|GPT|Model|Response|Answer|A):"
    r"|<\|assistant\|>|<\|im_start\|>assistant\n|<start_of_turn>model\n|\[/INST\]"
)
"""Text before each answer of a transcript, as in the preference data of Anthropic (hh-rlhf)."""

# fmt: off
MEDIA_WORDS = (
    "image", "img", "picture", "photo", "screenshot", "thumbnail", "audio", "waveform", "video",
    "pixel",
)
# fmt: on
MEDIA = frozenset(f"{word}{end}" for word in MEDIA_WORDS for end in ("", "s"))
"""Words in the names of columns and keys that hold pictures, sound and video."""
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
TRUTHS: Mapping[str, bool] = MappingProxyType(
    {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
)
"""Text in lower case -> whether it says yes."""


def holds_something(value: object) -> bool:
    """Return whether a value is neither null nor empty. False and 0 say something."""
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value) or isinstance(value, bool | int | float)


def parse_text(text: str) -> Any:
    """Return the value that a text holds as JSON, or as Python prints lists; None if it is text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def is_conversation(value: Any) -> bool:
    """Return whether a value is written as messages: a turn, a list, or JSON text of a list."""
    if isinstance(value, str):
        parsed = parse_text(value)
        return isinstance(parsed, list) and bool(parsed) and all(map(_is_turn, parsed))
    return isinstance(value, list | dict)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in ROLE_KEYS)


def is_media(name: str) -> bool:
    """Return whether the name of a column or a key says that it holds pictures, sound or video."""
    return not MEDIA.isdisjoint(word.lower() for word in WORD.findall(name))


def text_faults(
    value: object, name: str, wanted: str = "text", *, may_be_empty: bool = False
) -> Sequence[Fault]:
    """Return what is wrong with a value that must be text."""
    if not isinstance(value, str):
        return wrong_kind(value, name, wanted)
    if value.strip() or may_be_empty:
        return ()
    return (Fault(name, "empty", "is empty", "fill it in, or drop the row"),)


def truth_of(value: object) -> bool | None:
    """Return whether a value says yes: true or false, 1 or 0, or these as text; None if neither."""
    if isinstance(value, str):
        return TRUTHS.get(value.strip().lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


def label_faults(value: object, name: str) -> Sequence[Fault]:
    """Return what is wrong with a value that must be true or false."""
    if truth_of(value) is not None:
        return ()
    fix = "write true for an answer that is wanted, false for one that is not"
    return wrong_kind(value, name, "true or false", fix)


def wrong_kind(value: object, name: str, wanted: str, fix: str = "") -> Sequence[Fault]:
    """Return the fault of a value that is of another type than is wanted."""
    message = f"is {json_type(value)}, not {wanted}"
    return (Fault(name, "wrong_kind", message, fix or f"give {wanted}"),)


def same_answer_faults(chosen: object, rejected: object, name: str) -> Sequence[Fault]:
    """Return the fault of a pair of answers that do not differ."""
    if chosen != rejected:
        return ()
    fix = "give two different answers"
    return (Fault(name, "same_answer", "is the chosen answer", fix),)


def shared_prompt_faults(
    chosen: Sequence[Any], rejected: Sequence[Any], names: tuple[str, str]
) -> Sequence[Fault]:
    """Return what is wrong with two different answers that begin with their prompt."""
    end = prompt_length(chosen, rejected)
    if isinstance(chosen, list):
        if end:
            return ()
        message = f"does not begin with the same message as {names[0]}"
        fix = "begin both with the same question, or give a prompt"
        return (Fault(names[1], "no_shared_prompt", message, fix),)
    for name, answer in zip(names, (chosen, rejected), strict=True):
        if not answer[end:].strip():  # type: ignore[attr-defined]
            message = "is nothing but the beginning of the other answer"
            return (Fault(name, "empty", message, "give two whole answers, or a prompt"),)
    return ()


def prompt_length(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return how many characters or messages of two answers are their prompt.

    Of transcripts it ends with the last `Assistant:` that both have, so that no answer is cut
    within a word; of other texts and of messages it is what both begin with.
    """
    end = shared_length(chosen, rejected)
    if isinstance(chosen, str):
        for mark in ANSWER_MARK.finditer(chosen, 0, end):
            end = mark.end()
    return end


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
