"""Rows that need no close reading: most rows are plain, and reading each closely takes long.

A row that passes here has no faults and nothing unread inside the columns that are read; tests hold
it equal to the reading that the training does.
"""

from dataclasses import dataclass

from core.training.contract.messages import WHOLE, is_plain
from core.training.contract.row_columns import Row
from core.training.contract.row_formats import RowLayout, TextFormat
from core.training.contract.row_reader import is_sound_conversation
from core.training.contract.stages import STAGES

JSON_OR_BLANK = frozenset("[{ \t\n\r\f\v")
"""First characters of a text that may be JSON, or blank."""
TEXT_PARTS = ("system", "input", "context")
"""Parts beside a question or a conversation that are texts."""


@dataclass(frozen=True)
class PlainRows:
    """Test of the rows of one layout."""

    texts: tuple[str, ...] = ()
    """Columns that must hold text."""
    may_be_json: bool = False
    """True if a text may also be messages written as JSON."""
    conversation: str = ""
    """Column that must hold plain messages."""
    beside: tuple[str, ...] = ()
    """Columns that must be empty."""
    texts_beside: tuple[str, ...] = ()
    """Columns that must be empty or hold text."""
    tools: str = ""
    """Column that must be empty or hold tools; "" if there is none."""
    text_format: TextFormat = ""
    answers: tuple[str, str] | None = None
    """Columns of two answers, which must differ."""

    @classmethod
    def of(cls, layout: RowLayout, stage: str) -> "PlainRows | None":
        """Return the test for a layout; None if all of its rows need a close reading."""
        row_format = layout.row_format
        columns = tuple(layout.columns.values())
        if STAGES[stage].generates or "label" in layout.columns:
            return None
        beside, texts_beside, tools = _beside(layout)
        if row_format.id == "preference" and not layout.beside:
            answers = layout.columns["chosen"], layout.columns["rejected"]
            return cls(columns, True, text_format="standard", answers=answers)
        if "rejected" in layout.columns or "completions" in layout.columns:
            return None
        if "messages" in layout.columns:
            return cls(
                conversation=columns[0],
                beside=beside,
                texts_beside=texts_beside,
                tools=tools,
                text_format="conversational",
            )
        if row_format.is_always_chat:
            if tools:
                beside = (*beside, tools)
            return cls(columns, beside=beside, texts_beside=texts_beside, text_format="standard")
        if layout.beside:
            return None
        return cls(columns, "completion" in layout.columns, text_format="standard")

    def is_sound(self, row: Row) -> bool:
        """Return whether a row is certainly sound."""
        for name in self.beside:
            if row.get(name):
                return False
        for name in self.texts_beside:
            value = row[name]
            if value and (type(value) is not str or value.isspace()):
                return False
        if self.conversation:
            value = row[self.conversation]
            if type(value) is not list:
                return False
            tools = row[self.tools] if self.tools else None
            return (not tools and is_plain(value, WHOLE)) or is_sound_conversation(
                value, WHOLE, tools
            )
        for name in self.texts:
            value = row[name]
            if type(value) is not str or not value or value.isspace():
                return False
            if self.may_be_json and value[0] in JSON_OR_BLANK:
                return False
        return self.answers is None or row[self.answers[0]] != row[self.answers[1]]


def _beside(layout: RowLayout) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the columns beside the required ones: those that must be empty, those that may be
    text, and the one that may hold tools.

    Of two columns for one part, one may be left out, so both need a close reading.
    """
    empty: list[str] = []
    texts: list[str] = []
    tools = ""
    for part, names in layout.beside.items():
        if part == "tools" and len(names) == 1:
            tools = names[0]
        elif part in TEXT_PARTS and len(names) == 1:
            texts += names
        else:
            empty += names
    return tuple(empty), tuple(texts), tools
