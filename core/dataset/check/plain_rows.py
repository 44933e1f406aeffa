"""Rows that need no close reading: most rows are plain, and reading each closely takes long.

A row that passes here has no faults and nothing unread inside the columns that are read; tests hold
it equal to the reading that the training does.
"""

from dataclasses import dataclass

from core.training.contract.messages import WHOLE, is_plain
from core.training.contract.row_columns import Row
from core.training.contract.row_formats import RowLayout, TextFormat
from core.training.contract.stages import STAGES

JSON_OR_BLANK = frozenset("[{ \t\n\r\f\v")
"""First characters of a text that may be JSON, or blank."""


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
    """Columns that must be empty, or hold text if texts stand beside them."""
    text_format: TextFormat = ""

    @classmethod
    def of(cls, layout: RowLayout, stage: str) -> "PlainRows | None":
        """Return the test for a layout; None if all of its rows need a close reading."""
        row_format = layout.row_format
        columns = tuple(layout.columns.values())
        beside = tuple(name for names in layout.beside.values() for name in names)
        if STAGES[stage].generates or "label" in layout.columns or "rejected" in layout.columns:
            return None
        if "messages" in layout.columns:
            return cls((), False, columns[0], beside, "conversational")
        if row_format.is_always_chat:
            return cls(columns, False, "", beside, "standard")
        if beside:
            return None
        return cls(columns, "completion" in layout.columns, "", (), "standard")

    def is_sound(self, row: Row) -> bool:
        """Return whether a row is certainly sound."""
        for name in self.beside:
            if row.get(name):
                return False
        if self.conversation:
            value = row[self.conversation]
            return type(value) is list and is_plain(value, WHOLE)
        for name in self.texts:
            value = row[name]
            if type(value) is not str or not value or value.isspace():
                return False
            if self.may_be_json and value[0] in JSON_OR_BLANK:
                return False
        return True
