"""Unread columns and keys of messages, and marks of pictures in texts, counted over a file.

Counts each name once a row, with its first line. Keeps a bounded number of names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from core.dataset.report import NotRead
from core.training.contract.row_columns import Row, holds_something
from core.training.contract.row_formats import RowLayout, class_matters, class_of, may_matter

MAX_NAMES = 200
"""Names that are counted; a file whose rows are objects of keys could have any number."""
LONGEST_NAME = 200
TAG_PATTERN = r"<(?:(?:image|video|audio|img)(?:_?\d+)?|\|(?:image|vision|video|audio)\w*\|)>"
MEDIA_TAG = re.compile(TAG_PATTERN)
MEDIA_TAG_BYTES = re.compile(TAG_PATTERN.encode())
CONTAINERS = frozenset((list, dict))
"""Types of values that may matter under any name."""
CLASSES_INSIDE = ("known", "text", "media")
"""Classes of keys inside an object that is not read; verdicts there are of many things."""
Held = tuple[Mapping[str, object], Sequence[str]]
"""Columns that hold something, and the names of those that would change learning."""
NOTHING: Held = (MappingProxyType({}), ())
NUMBER_OF_TAG = re.compile(r"_?\d+(?=>)")


class UnreadColumns:
    """Columns of one layout that are not read."""

    def __init__(self, columns: tuple[str, ...], layout: RowLayout) -> None:
        self.names = tuple(name for name in columns if name not in layout.read_names)
        is_text = layout.row_format.id == "text"
        self.may_lack_question = set(layout.columns) == {"chosen", "rejected"}
        """True if any other column may hold the question that both answers lack."""

        self._classes = {name: class_of(name, is_text) for name in self.names}

    def held_in(self, row: Row) -> Held:
        """Return (columns that hold something, those of them that would change learning).

        A key of an object that would change learning stands beside them as `column.key`.
        """
        if not self._classes:
            return NOTHING
        held: dict[str, object] = {}
        lost: list[str] = []
        for name, kind in self._classes.items():
            value = row[name]
            if not holds_something(value):
                continue
            # Nearly no value is more than a text or a number, so that this takes no time.
            is_long = type(value) in CONTAINERS or (type(value) is str and may_matter(value))
            if (kind or is_long) and class_matters(kind, name, value):
                lost.append(name)
            elif type(value) is dict:
                inside = dict(_lost_inside(name, value))
                lost += inside
                held |= inside
                if len(inside) == len(value):
                    continue
            held[name] = value
        return held, lost


def _lost_inside(name: str, value: dict[str, object]) -> Iterator[tuple[str, object]]:
    """Yield (column and key, value) of what would change learning inside an object."""
    for key, each in value.items():
        kind = class_of(key, beside_text=False)
        if kind in CLASSES_INSIDE and holds_something(each) and class_matters(kind, key, each):
            yield f"{name}.{key}", each


class UnreadCounter:
    """Names of what is not read, counted over a file."""

    def __init__(self) -> None:
        self._counts: dict[str, NotRead] = {}

    def add(self, name: str, line: int, *, changes_learning: bool) -> None:
        """Count a name in one row."""
        name = name[:LONGEST_NAME]
        known = self._counts.get(name)
        if known is None:
            if len(self._counts) < MAX_NAMES:
                self._counts[name] = NotRead(name, 1, line, changes_learning)
            return
        matters = known.changes_learning or changes_learning
        self._counts[name] = NotRead(name, known.num_rows + 1, known.first_line, matters)

    def found(self) -> tuple[NotRead, ...]:
        """Return the names: first what changes learning, then by line."""
        return tuple(
            sorted(
                self._counts.values(),
                key=lambda each: (not each.changes_learning, each.first_line, each.field),
            )
        )


def may_be_question(value: object) -> bool:
    """Return whether a value beside two answers without a question may be that question."""
    return isinstance(value, list | dict) or (isinstance(value, str) and " " in value.strip())


def is_repeated(value: object, read_texts: list[str]) -> bool:
    """Return whether the texts of a value stand in what is read, or hold all of that."""
    texts = [text.strip() for text in texts_in(value) if text.strip()]
    if not texts:
        return False
    if all(any(text in read for read in read_texts) for text in texts):
        return True
    return len(texts) == 1 and all(read.strip() in texts[0] for read in read_texts)


def texts_in(value: object, key: str = "") -> Iterator[str]:
    """Yield the texts inside a value, without those that only name a role or a type."""
    if isinstance(value, str):
        if key not in ("role", "from", "type"):
            yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from texts_in(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)


def media_tag(row: Row) -> str:
    """Return the first mark of a picture, sound or video in a row as it is trained on; or "".

    A tag that is closed again, as in HTML, is none; but <img> is closed around a path only.
    """
    for text in texts_in(row):
        for found in MEDIA_TAG.finditer(text):
            tag = found.group()
            if tag == "<img>" or f"</{tag[1:]}" not in text:
                return NUMBER_OF_TAG.sub("", tag)
    return ""
