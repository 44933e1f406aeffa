"""Names and values of columns and of keys of messages without which a model learns something else.

Standard library only. Reads no row; says of what is not read whether that matters.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

from .messages import ROLE_KEYS
from .row_columns import is_media, parse_text, truth_of
from .row_names import KEY_WORDS, NOT_MAPPED, plain_name, words_of


@dataclass(frozen=True)
class LostColumn:
    """Columns without which the model learns something else."""

    names: frozenset[str]
    """In lower case, without signs between letters."""
    reason: str
    only_beside_text: bool = False
    """True if this is so for rows of whole texts only."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOST_COLUMNS = (
    LostColumn(
        _names(
            "system systemprompt systemmessage systeminstruction sysprompt sys persona sistema "
            "système systemnachricht システム 系统 系統 系统提示 시스템 система"
        ),
        "a system text stands before all turns",
    ),
    LostColumn(
        _names(
            "context contexts input inputs passage passages background document documents "
            "evidence schema paragraph paragraphs knowledge choices options kontext contexte "
            "contexto contesto 文脈 上下文 背景 参考 문맥 맥락 контекст السياق سياق संदर्भ"
        ),
        "a question is answered from its context",
    ),
    LostColumn(
        _names(
            "history chathistory conversationhistory dialoguehistory dialoghistory verlauf "
            "historial historique 履歴 历史 歷史 история"
        ),
        "a question follows the turns before it",
    ),
    LostColumn(
        _names(
            "tools functions availabletools toolconfig toolcalls functioncall apis werkzeuge "
            "herramientas outils 工具 ツール 도구"
        ),
        "a model learns to call the tools that it is offered",
    ),
    LostColumn(
        _names(
            "label labels ktotag mask lossmask weight weights lossweight iscorrect isgood thumbsup"
        ),
        "a label or a mask says what must not be learnt",
    ),
    LostColumn(
        _names(
            "question questions query prompt instruction instructions problem messages "
            "conversations conversation contents dialogue dialog turns"
        ),
        "an answer is learnt as the answer to its question",
    ),
    LostColumn(
        _names(
            "reasoning reasoningcontent complexcot cot chainofthought rationale thinking "
            "thought thoughts 思考 推理"
        ),
        "a model learns to think before it answers",
    ),
    LostColumn(
        _names(
            "role from speaker parentid answer answers response responses output outputs "
            "completion completions assistant"
        ),
        "a whole text is learnt without the turns that stand beside it",
        only_beside_text=True,
    ),
)
LOST_NAMES: Mapping[str, LostColumn] = MappingProxyType(
    {name: column for column in LOST_COLUMNS for name in column.names}
)
SCALARS_MATTER = _names(
    "label labels ktotag mask lossmask weight weights lossweight iscorrect isgood thumbsup parentid"
)
"""Names whose numbers and flags matter too; of others only texts, lists and objects do."""
VERDICTS = _names("label ktotag iscorrect isgood thumbsup weight lossweight")
"""Names of columns that say yes or no to an answer, in words or numbers."""
TEXT_WORDS = _names(
    "system sysprompt persona preamble developer context contexts ctx ctxs passage passages "
    "background evidence schema paragraph paragraphs knowledge document documents docs article "
    "excerpt snippet snippets facts premise transcript story abstract email body content code "
    "hint hints table tables guidelines examples demonstrations shot shots history turns "
    "messages dialogue dialog conversation conversations tools functions function plugins "
    "reasoning cot rationale think thinking thought thoughts scratchpad"
)
"""Words in longer names, or less usual names, of texts that a model should have seen."""
VERDICT_WORDS = _names(
    "label labels correct accepted approved preferred desirable thumbs good valid keep verdict "
    "feedback quality rating train training trainable learn supervise loss weight"
)
"""Words in the names of columns that may say no to an answer."""
FAULT_WORDS = _names(
    "rejected flagged toxic wrong incorrect harmful unsafe spam exclude excluded ignore ignored "
    "masked"
)
"""Words in the names of columns that say no to an answer if they are true."""
NOES = _names("no bad negative down dislike disliked incorrect wrong rejected unwanted off")
"""Texts that say no to an answer, beside those that `truth_of` knows."""
ASKING = ("is", "was", "has", "are")
"""First words of names whose numbers are answers to a question."""
MEDIA_PATH = re.compile(
    r"\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|mp3|wav|flac|ogg|m4a|mp4|avi|mov|mkv|webm)"
    r"|data:(?:image|audio|video)/\S*",
    re.IGNORECASE,
)
LONGEST_PATH = 2000
"""Characters; a picture in a text is longer, but its beginning says what it is."""
TOOL_KEYS = ("parameters", "input_schema", "inputSchema", "function", "functionDeclarations")
TURN_OR_TOOL_KEYS = (*TOOL_KEYS, *ROLE_KEYS)
TEXT_KEYS = ("content", "value", "parts", "text")
PREFERENCES = _names("chosen rejected preferred better worse")
"""Words in the names of conversations that another stage compares."""
Class = Literal["known", "media", "text", "verdict", "fault", ""]


def changes_learning(name: str, value: Any, *, beside_text: bool = False) -> bool:
    """Return whether a model would learn something else if this column or key were read.

    `beside_text` says that a row is a whole text, which anything may have been taken from.
    """
    kind = class_of(name, beside_text)
    return class_matters(kind, name, value)


def class_matters(kind: Class, name: str, value: Any) -> bool:
    """Return the same for a name whose class is known."""
    name = name.removesuffix(NOT_MAPPED)
    if kind == "known":
        return _known_matters(plain_name(name), value)
    if kind in ("verdict", "fault") and _says_no(kind, words_of(name), value):
        return True
    is_text = isinstance(value, str | list | dict)
    if is_text and (kind == "media" or (kind == "text" and _says_something(value))):
        return True
    return is_media_value(value) or is_tools_or_turns(name, value)


@lru_cache(maxsize=4096)
def class_of(name: str, beside_text: bool) -> Class:
    """Return what the name of a column or a key says of its values; "" if nothing."""
    name = name.removesuffix(NOT_MAPPED)
    column = LOST_NAMES.get(plain_name(name))
    if column is not None and (beside_text or not column.only_beside_text):
        return "known"
    if is_media(name):
        return "media"
    words = words_of(name)
    if not words or words[-1] in KEY_WORDS:
        return ""
    found: Class = ""
    if not TEXT_WORDS.isdisjoint(words):
        found = "text"
    elif not FAULT_WORDS.isdisjoint(words):
        found = "fault"
    elif not VERDICT_WORDS.isdisjoint(words):
        found = "verdict"
    return found


def _known_matters(plain: str, value: Any) -> bool:
    says_yes = truth_of(value) is True
    if value is True or (says_yes and plain in VERDICTS):  # a wanted answer counts, as all do
        return False
    return isinstance(value, str | list | dict) or plain in SCALARS_MATTER


def _says_no(kind: Class, words: list[str], value: Any) -> bool:
    """Return whether a verdict, or what says that an answer has a fault, is against it.

    Numbers are scores more often than verdicts.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if words[-1] == "weight":
            return 0 <= value < 1
        if words[0] not in ASKING and "label" not in words:
            return False
    written = value.strip().lower() if isinstance(value, str) else ""
    if kind == "fault":
        return truth_of(value) is True or written == "yes"
    return truth_of(value) is False or written in NOES


def _says_something(value: Any) -> bool:
    """Return whether a value is more than a word, which may be a name or a kind."""
    return " " in value.strip() if isinstance(value, str) else bool(value)


def may_matter(text: str) -> bool:
    """Return whether a text may be a path, a picture or a list, whose closer look takes long."""
    return text.startswith(("[", "data:")) or "." in text[-5:]


def is_media_value(value: Any) -> bool:
    """Return whether a value is a picture, sound or video, or the path of one."""
    if isinstance(value, str):
        return may_matter(value) and MEDIA_PATH.fullmatch(value[:LONGEST_PATH].strip()) is not None
    if isinstance(value, list):
        return bool(value) and is_media_value(value[0])
    # The library datasets writes them so.
    return isinstance(value, dict) and "bytes" in value and "path" in value


def is_tools_or_turns(name: str, value: Any) -> bool:
    """Return whether a value is a list of tools, or of turns that are no rejected answer.

    Either may be JSON in a text.
    """
    if isinstance(value, str):
        if not value.startswith("[") or not any(f'"{key}"' in value for key in TURN_OR_TOOL_KEYS):
            return False
        value = parse_text(value)
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    first = value[0]
    if any(isinstance(first.get(key), dict | list) for key in TOOL_KEYS):
        return True
    is_turn = _has_any(first, ROLE_KEYS) and _has_any(first, TEXT_KEYS)
    return is_turn and PREFERENCES.isdisjoint(words_of(name))


def _has_any(fields: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(name in fields for name in names)
