"""RowFormat: one way to write rows; and which columns of a row hold the parts of a format.

Standard library only. Knows no certain format: those are in row_formats.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from .row_columns import Row
from .row_names import Names
from .row_parts import RowParts

TextFormat = Literal["standard", "conversational", ""]
"""TRL's word for rows of plain text and for rows of messages; empty if there is no row."""


@dataclass(frozen=True, eq=False)
class RowFormat:
    """One way to write rows: its columns, an example, and its conversion to TRL's columns."""

    id: str
    dataset_type: str
    """TRL's name for it."""
    required: Mapping[str, Names]
    """Part -> names of its column, in the order in which a person reads them."""
    optional: Mapping[str, Names]
    """Further parts that are read if a row has them."""
    convert: Callable[[RowParts], Row]
    """Read the parts of a row into TRL's columns; meaningless if it notes a fault."""
    example: str
    """One row, in JSON."""
    is_always_chat: bool = False
    """True if texts become messages, so that rows of text and of text with a system text mix."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Usual names of the columns that a row must have."""
        return tuple(names[0] for names in self.required.values())


@dataclass(frozen=True)
class RowLayout:
    """Row format of rows with certain columns, and which column holds which part."""

    row_format: RowFormat
    columns: Mapping[str, str]
    """Part -> name of its column, for the parts that a row must have."""
    beside: Mapping[str, Names] = field(default_factory=dict)
    """Part -> names of columns that may hold it, for the parts that a row may have."""

    @cached_property
    def read_names(self) -> frozenset[str]:
        """Names of all columns that are read."""
        beside = (name for names in self.beside.values() for name in names)
        return frozenset((*self.columns.values(), *beside))


def row_layout_of(row_format: RowFormat, names: Iterable[str]) -> RowLayout | None:
    """Return which of a row's columns hold the parts of a format; None if one is missing."""
    present = frozenset(names)
    columns: dict[str, str] = {}
    for part, choices in row_format.required.items():
        found = [name for name in choices if name in present]
        if not found:
            return None
        columns[part] = found[0]
    beside: dict[str, Names] = {}
    for part, choices in row_format.optional.items():
        found = [name for name in choices if name in present and name not in columns.values()]
        if found:
            beside[part] = tuple(found)
    return RowLayout(row_format, columns, beside)
