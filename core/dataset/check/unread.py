"""Unread columns and keys of messages, and marks of pictures in texts, counted over a file.

Counts each name once a row, with its first line. Keeps a bounded number of names.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.dataset.column_names import plain_name
from core.dataset.report import NotRead
from core.training.contract.row_columns import Row, is_media, truth_of
from core.training.contract.row_formats import RowLayout

MAX_NAMES = 200
"""Names that are counted; a file whose rows are objects of keys could have any number."""
LONGEST_NAME = 200
TAG_PATTERN = r"<(?:(?:image|video|audio|img)(?:_?\d+)?|\|(?:image|vision|video|audio)\w*\|)>"
MEDIA_TAG = re.compile(TAG_PATTERN)
MEDIA_TAG_BYTES = re.compile(TAG_PATTERN.encode())
NUMBER_OF_TAG = re.compile(r"_?\d+(?=>)")


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
        _names("system systemprompt systemmessage systeminstruction sysprompt sys persona"),
        "a system text stands before all turns",
    ),
    LostColumn(
        _names(
            "context contexts input inputs passage passages background document documents "
            "evidence schema paragraph paragraphs knowledge choices options"
        ),
        "a question is answered from its context",
    ),
    LostColumn(
        _names("history chathistory conversationhistory dialoguehistory dialoghistory"),
        "a question follows the turns before it",
    ),
    LostColumn(
        _names("tools functions availabletools toolconfig toolcalls functioncall apis"),
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
            "thought thoughts"
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


class UnreadColumns:
    """Columns of one layout that are not read."""

    def __init__(self, columns: tuple[str, ...], layout: RowLayout) -> None:
        self.names = tuple(name for name in columns if name not in layout.read_names)
        is_text = layout.row_format.id == "text"
        self.may_lack_question = set(layout.columns) == {"chosen", "rejected"}
        """True if any other column may hold the question that both answers lack."""
        self.lost = frozenset(name for name in self.names if _is_lost(name, is_text))
        self.may_be_repeated = frozenset(name for name in self.lost if not is_media(name))
        """Columns that may repeat what is read, and then are not lost."""


def _is_lost(name: str, is_text: bool) -> bool:
    plain = plain_name(name)
    column = LOST_NAMES.get(plain)
    if column is not None:
        return is_text or not column.only_beside_text
    return is_media(name)


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


def is_lost_value(name: str, value: object) -> bool:
    """Return whether a value of a column that would change learning can do so."""
    plain = plain_name(name)
    says_yes = truth_of(value) is True
    if value is True or (says_yes and plain in VERDICTS):  # a wanted answer counts, as all do
        return False
    return isinstance(value, str | list | dict) or plain in SCALARS_MATTER


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
