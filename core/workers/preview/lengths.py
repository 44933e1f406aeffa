"""The lengths of rows as they are measured: numbers for each row, to be handed on. Draws no conclusions."""

import base64
from array import array
from collections.abc import Sequence
from typing import Any

from core.training.data.tokens import Tokens

NEVER = 2**31 - 1
"""Stands for the first token in the loss of a row that has none."""
NUMBERS = 4
"""For each row: its tokens, the first and the end of those in the loss, and the tokens of all its texts."""
ROWS_AT_ONCE = 200_000


class Lengths:
    """Sixteen bytes for each row measured."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.num_unreadable = 0
        self._first_unreadable: tuple[int, str] | None = None
        self._numbers = array("i")

    @property
    def num_measured(self) -> int:
        """Rows that were looked at, those that cannot be read included."""
        return len(self._numbers) // NUMBERS + self.num_unreadable

    def add(self, texts: Sequence[Tokens]) -> None:
        """A row: its text, or the two texts of a preference, of which the longer says how long the row is.

        The row is lost to the loss where one of them is, as TRL has it.
        """
        firsts = [NEVER if text.first_in_loss is None else text.first_in_loss for text in texts]
        lengths = [len(text.ids) for text in texts]
        self._numbers.extend(
            (max(lengths), max(firsts), max(text.end_in_loss for text in texts), sum(lengths))
        )

    def add_unreadable(self, line: int, why: str) -> None:
        """A row that has no tokens because something is wrong with it."""
        self.num_unreadable += 1
        self._first_unreadable = min(self._first_unreadable or (line, why), (line, why))

    def since(self, row: int) -> dict[str, Any]:
        """The numbers of the rows from the `row`-th measured on, as many as go at once; the unreadable left out."""
        numbers = self._numbers[row * NUMBERS : (row + ROWS_AT_ONCE) * NUMBERS]
        return {
            "numbers": base64.b64encode(numbers.tobytes()).decode(),
            "unreadable_rows": self.num_unreadable,
            "first_unreadable": self._first_unreadable,
            "has_more": len(self._numbers) > (row + ROWS_AT_ONCE) * NUMBERS,
        }
