"""Mappings of columns that the names of a file's columns and the first values in them suggest.

A mapping goes from our column to the file's: {"question": "Frage", "answer": "Antwort"}. Ids,
numbers and objects are never suggested for a text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from types import MappingProxyType
from typing import Literal

from core.dataset.column_names import (
    ANSWERS,
    FILLERS,
    HEADINGS,
    NEVER_ASKED,
    OPTIONAL_COLUMNS,
    PREFERENCE_WORDS,
    SPOKEN,
    by_plain_name,
    names_of,
)
from core.dataset.formats import is_like_conversation
from core.training.contract.row_columns import Row, holds_something, parse_text
from core.training.contract.row_formats import (
    KEY_WORDS,
    ROW_FORMATS_BY_ID,
    RowFormat,
    accepts,
    plain_name,
    words_of,
)
from core.training.contract.row_reader import RIGHT_ANSWERS
from core.training.contract.stages import STAGES

Kind = Literal["text", "number", "key", "messages", "label", "other", "empty"]
"""What the values of a column are. A key is an id, a path or an address: one word with a digit."""
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
MIN_LIKENESS = 0.8
"""Least likeness of two names, from 0 to 1: `anwser` passes for `answer`."""
SAMPLED_ROWS = 100
NUMBER = re.compile(r"[-+]?[\d.,]+%?")
KEY = re.compile(r"(?=.*\d)[\w.:/#@?=&%+-]+|\w+://\S+", re.ASCII)
TEXT_ONLY: frozenset[Kind] = frozenset(("text",))
ANSWER_KINDS: frozenset[Kind] = frozenset(("text", "number"))
CHAT_KINDS: frozenset[Kind] = frozenset(("text", "messages"))
NO_TEXT: frozenset[Kind] = frozenset(("number", "key", "empty"))
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
        if len(mapping) < len(row_format.columns):
            continue
        if id == "text" and _has_other_texts(rows, mapping, stage):
            continue
        if "rejected" in mapping and _is_verdict(rows, mapping):
            continue
        mapping |= _match_optional(row_format, mapping, usable)
        if row_format.id == "prompt only":
            mapping |= _match_right_answer(mapping, usable)
        return mapping
    return _any_two_texts(usable, stage)


def _has_other_texts(rows: Sequence[Row], mapping: Mapping[str, str], stage: str) -> bool:
    """Return whether a text is only a part of what a row says, as a passage beside its summary."""
    name = mapping["text"]
    if plain_name(name) == "text" or STAGES[stage].learns_every_token:
        return False
    if not SPOKEN.isdisjoint(words_of(name)):
        return True
    return not all(_is_heading(name) for name in left_out(rows, mapping))


def _is_verdict(rows: Sequence[Row], mapping: Mapping[str, str]) -> bool:
    """Return whether a column only says which answer is better, as `winner` does by its name."""
    are_words = []
    for part in ("chosen", "rejected"):
        values = [row.get(mapping[part]) for row in islice(rows, SAMPLED_ROWS)]
        texts = [value for value in values if isinstance(value, str)]
        are_words.append(bool(texts) and not any(" " in text.strip() for text in texts))
    return are_words[0] != are_words[1]


def _any_two_texts(kinds: Mapping[str, Kind], stage: str) -> dict[str, str]:
    """Return the two columns of a file that hold texts as a question and its answer."""
    pair = ROW_FORMATS_BY_ID["question and answer"]
    names = [name for name, kind in kinds.items() if kind not in NO_TEXT or not _is_heading(name)]
    texts = [name for name in names if kinds[name] not in NO_TEXT]
    are_texts = len(texts) == 2 and all(kinds[name] == "text" for name in texts)
    if not are_texts or any(map(_is_aside, texts)) or not accepts(stage, pair):
        return {}
    if plain_name(texts[1]) in map(plain_name, names_of("question")):
        return {}  # the question would be taken for the answer
    return dict(zip(pair.columns, texts, strict=True))


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
    free, mapping = by_plain_name(names), dict[str, str]()
    for column in row_format.columns:
        wanted = KINDS.get(column, TEXT_ONLY)
        fitting = {
            plain: name
            for plain, name in free.items()
            if plain not in NEVER_ASKED
            and (not kinds or (kinds[name] in wanted and not _is_key_name(name)))
        }
        plain = _best_match(names_of(column), fitting)
        if plain is not None:
            mapping[column] = free.pop(plain)
    return mapping


def _match_optional(
    row_format: RowFormat, mapping: Mapping[str, str], kinds: Mapping[str, Kind]
) -> dict[str, str]:
    """Return the further columns that a format reads, matched by exact names only."""
    taken = set(mapping.values())
    free = by_plain_name(name for name in kinds if name not in taken)
    found: dict[str, str] = {}
    for column in OPTIONAL_COLUMNS:
        if column not in row_format.optional:
            continue
        wanted = KINDS.get(column, TEXT_ONLY)
        fitting = {plain: name for plain, name in free.items() if kinds[name] in wanted}
        plain = _first_exact(names_of(column), fitting) or _by_last_word([column], fitting)
        if plain is not None:
            found[column] = free.pop(plain)
    return found


def _match_right_answer(mapping: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the column of the right answers to prompts, which rewards compare with."""
    free = by_plain_name(name for name in names if name not in mapping.values())
    for answer in (*RIGHT_ANSWERS, *ANSWERS.split()):
        if (plain := plain_name(answer)) in free:
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
            return "messages" if is_like_conversation(text) else "other"
        if NUMBER.fullmatch(text):
            return "number"
        return "key" if KEY.fullmatch(text) else "text"
    return "messages" if is_like_conversation(value) else "other"


def _is_for_preferences(name: str) -> bool:
    return not PREFERENCE_WORDS.isdisjoint(words_of(name))


def _is_key_name(name: str) -> bool:
    words = words_of(name)
    return words == ["id"] or (len(words) > 1 and words[-1] in KEY_WORDS)


def _is_heading(name: str) -> bool:
    """Return whether a column's name says that it holds no text to learn of its own."""
    words = words_of(name)
    return bool(words) and words[-1] in HEADINGS


def _is_aside(name: str) -> bool:
    """Return whether a column is certainly no question and no answer."""
    return _is_heading(name) or plain_name(name) in NEVER_ASKED


def _best_match(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    """Return the plain name of the likeliest column: the first of several that are as likely."""
    exact = _first_exact(wanted, free) or _by_words(wanted, free)
    return exact or _by_last_word(wanted, free) or _closest(wanted, free)


def _first_exact(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    for name in map(plain_name, wanted):
        if name in free:
            return name
    return None


def _by_words(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    """Return a column such as `answer_text` or `Answer 1`."""
    for name in wanted:
        for plain, column in free.items():
            words = words_of(column)
            words = [word for word in words if not word.isdigit() and word not in FILLERS]
            if words == [name]:
                return plain
    return None


def _by_last_word(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    """Return the one column whose last word is wanted, such as `sql_prompt`."""
    for name in wanted:
        found = [plain for plain, column in free.items() if words_of(column)[-1:] == [name]]
        if len(found) == 1:
            return found[0]
    return None


def _closest(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    """Return the column whose name is most like a wanted one, of two alike the first."""
    for name in wanted:
        likeness = {plain: SequenceMatcher(None, plain, name).ratio() for plain in free}
        closest = max(likeness, key=lambda plain: likeness[plain], default=None)
        if closest is not None and likeness[closest] >= MIN_LIKENESS:
            return closest
    return None
