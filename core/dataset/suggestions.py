"""Mappings of columns that the names of a file's columns and the first values in them suggest.

A mapping goes from our column to the file's: {"question": "Frage", "answer": "Antwort"}. Ids,
numbers and objects are never suggested for a text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from types import MappingProxyType
from typing import Literal

from core.training.contract.row_columns import Row, holds_something, is_conversation, parse_text
from core.training.contract.row_formats import ROW_FORMATS_BY_ID, RowFormat, accepts
from core.training.contract.row_reader import RIGHT_ANSWERS
from core.training.contract.stages import STAGES

Kind = Literal["text", "number", "key", "messages", "label", "other", "empty"]
"""What the values of a column are. A key is an id, a path or an address: one word with a digit."""
QUESTIONS = "question query prompt instruction input problem request user human task frage pregunta"
QUESTIONS += " 質問 問題 问题 提问 질문 вопрос"
ANSWERS = "answer response completion output reply solution assistant target result gpt antwort"
ANSWERS += " respuesta réponse 回答 答案 解答 답변 ответ"
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "messages": "conversation chat dialogue dialog",
        "prompt": QUESTIONS,
        "completion": ANSWERS,
        "question": QUESTIONS,
        "answer": ANSWERS,
        "chosen": "accepted preferred winner better good positive chosenmessages",
        "rejected": "dispreferred loser worse bad negative rejectedmessages",
        "label": "desirable preference thumbsup isgood",
        "text": "content body document passage article story code",
        "system": "systemprompt systemmessage sysprompt",
        "context": "input passage passages background evidence schema paragraph",
        "history": "chathistory conversationhistory dialoguehistory dialoghistory",
        "tools": "functions availabletools",
    }
)
"""Our column -> other names for it in lower case, the likelier first."""
SUGGESTED_FORMATS = (
    "messages",
    "preference",
    "preference without prompt",
    "unpaired preference",
    "question and answer",
    "prompt and completion",
    "text",
    "prompt only",
)
"""Row formats that columns are matched with, in this order."""
OPTIONAL_COLUMNS = ("system", "context", "history", "tools")
# fmt: off
KEY_WORDS = frozenset((
    "id", "ids", "uuid", "guid", "key", "idx", "index", "no", "num", "number", "hash", "url", "uri",
    "link", "path", "file", "date", "time", "timestamp", "score", "rating", "type", "category",
    "lang", "language", "source", "len", "length", "tokens", "count", "model", "name",
))
"""Last words of names whose columns hold no text to learn."""
PREFERENCE_WORDS = frozenset((
    "chosen", "rejected", "preferred", "dispreferred", "winner", "loser", "better", "worse",
    "accepted", "positive", "negative", "good", "bad",
))
# fmt: on
"""Words of names that are for a better or a worse answer."""
MIN_LIKENESS = 0.8
"""Least likeness of two names, from 0 to 1: `anwser` passes for `answer`."""
SAMPLED_ROWS = 100
NUMBER = re.compile(r"[-+]?[\d.,]+%?")
KEY = re.compile(r"(?=.*\d)[\w.:/#@?=&%+-]+|\w+://\S+", re.ASCII)
WORD = re.compile(r"[^\W\d_]+|\d+")
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
TEXT_ONLY: frozenset[Kind] = frozenset(("text",))
ANSWER_KINDS: frozenset[Kind] = frozenset(("text", "number"))
CHAT_KINDS: frozenset[Kind] = frozenset(("text", "messages"))
KINDS: Mapping[str, frozenset[Kind]] = MappingProxyType(
    {
        "messages": frozenset(("messages",)),
        "prompt": CHAT_KINDS,
        "completion": CHAT_KINDS,
        "chosen": CHAT_KINDS,
        "rejected": CHAT_KINDS,
        "label": frozenset(("label",)),
        "answer": ANSWER_KINDS,
        "history": frozenset(("messages",)),
        "tools": frozenset(("other",)),
    }
)
"""Our column -> kinds of values that it may hold; any other column holds text only."""


def suggest_mapping(rows: Sequence[Row], stage: str) -> dict[str, str]:
    """Return the mapping that the columns of these rows suggest; empty if they suggest none."""
    kinds = column_kinds(rows)
    prefers = "preference" in STAGES[stage].dataset_types
    usable = {
        name: kind for name, kind in kinds.items() if prefers or not _is_for_preferences(name)
    }
    for id in SUGGESTED_FORMATS:
        row_format = ROW_FORMATS_BY_ID[id]
        if not accepts(stage, row_format):
            continue
        mapping = match_columns(row_format, usable)
        if len(mapping) == len(row_format.columns):
            mapping |= _match_optional(row_format, mapping, usable)
            if row_format.id == "prompt only":
                mapping |= _match_right_answer(mapping, usable)
            return mapping
    pair = ROW_FORMATS_BY_ID["question and answer"]
    are_texts = list(usable.values()) == ["text", "text"] and not any(map(_is_key_name, usable))
    if len(kinds) == 2 and are_texts and accepts(stage, pair):  # any two columns of texts
        return dict(zip(pair.columns, usable, strict=True))
    return {}


def left_out(rows: Sequence[Row], mapping: Mapping[str, str]) -> list[str]:
    """Return the columns of texts and messages that a mapping leaves out."""
    kinds = column_kinds(rows)
    return [
        name
        for name, kind in kinds.items()
        if kind in CHAT_KINDS and name not in mapping.values() and not _is_key_name(name)
    ]


def match_columns(
    row_format: RowFormat, names: Iterable[str] | Mapping[str, Kind]
) -> dict[str, str]:
    """Return {column of the format: column of the file} for those that match by their name.

    If the kinds of values are given with the names, they must match too.
    """
    kinds = names if isinstance(names, Mapping) else {}
    free, mapping = _by_plain_name(names), dict[str, str]()
    for column in row_format.columns:
        wanted = KINDS.get(column, TEXT_ONLY)
        fitting = {
            plain: name
            for plain, name in free.items()
            if not kinds or (kinds[name] in wanted and not _is_key_name(name))
        }
        plain = _best_match([column, *ALIASES.get(column, "").split()], fitting)
        if plain is not None:
            mapping[column] = free.pop(plain)
    return mapping


def _match_optional(
    row_format: RowFormat, mapping: Mapping[str, str], kinds: Mapping[str, Kind]
) -> dict[str, str]:
    """Return the further columns that a format reads, matched by exact names only."""
    taken = set(mapping.values())
    free = _by_plain_name(name for name in kinds if name not in taken)
    found: dict[str, str] = {}
    for column in OPTIONAL_COLUMNS:
        if column not in row_format.optional:
            continue
        wanted = KINDS.get(column, TEXT_ONLY)
        for plain in (column, *ALIASES[column].split()):
            if plain in free and kinds[free[plain]] in wanted and column not in found:
                found[column] = free.pop(plain)
    return found


def _match_right_answer(mapping: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the column of the right answers to prompts, which rewards compare with."""
    free = _by_plain_name(name for name in names if name not in mapping.values())
    for answer in (*RIGHT_ANSWERS, *ANSWERS.split()):
        if (plain := answer.replace("_", "")) in free:
            return {"answer": free[plain]}
    return {}


def column_kinds(rows: Sequence[Row]) -> dict[str, Kind]:
    """Return what the values of each column of the first rows are."""
    names = dict.fromkeys(name for row in rows for name in row)
    some = list(islice(rows, SAMPLED_ROWS))
    return {name: _kind([row[name] for row in some if name in row]) for name in names}


def _kind(values: Sequence[object]) -> Kind:
    found = {_kind_of(value) for value in values if holds_something(value)}
    if not found:
        return "empty"
    if len(found) == 1:
        return found.pop()
    # Some answers are one word or a number among others that are sentences.
    return "text" if found <= {"text", "number", "key"} and "text" in found else "other"


def _kind_of(value: object) -> Kind:
    if isinstance(value, bool):
        return "label"
    if isinstance(value, str):
        text = value.strip()
        if parse_text(text) is not None:
            return "messages" if is_conversation(text) else "other"
        if NUMBER.fullmatch(text):
            return "number"
        return "key" if KEY.fullmatch(text) else "text"
    if isinstance(value, list) and value and all(map(_is_turn, value)):
        return "messages"
    return "other"


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _is_for_preferences(name: str) -> bool:
    return not PREFERENCE_WORDS.isdisjoint(_words(name))


def _is_key_name(name: str) -> bool:
    words = list(_words(name))
    return words == ["id"] or (len(words) > 1 and words[-1] in KEY_WORDS)


def _words(name: str) -> Iterator[str]:
    """Yield the words of a name such as `question_id` or `answerId`, in lower case."""
    for word in WORD.findall(HUMP.sub(" ", name)):
        yield word.lower()


def _best_match(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    for name in wanted:
        if name in free:
            return name
    for name in wanted:
        if close := get_close_matches(name, free, 1, MIN_LIKENESS):
            return close[0]
    return None


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return column names by their letters and digits, of every script, in lower case."""
    found: dict[str, str] = {}
    for name in names:
        plain = "".join(sign for sign in name.lower() if sign.isalnum())
        # Of two names that differ in punctuation only, the second keeps it.
        found[name if not plain or plain in found else plain] = name
    return found
