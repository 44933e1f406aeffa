"""Lengths of rows while they are measured, as numbers for the parent. Draws no conclusions."""

import base64
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from core.dataset.token_lengths import FIELDS, NEVER
from core.training.data.tokens import Tokens

ROWS_AT_ONCE = 200_000


class RowMeasurements:
    """Numbers of each row that was measured, in the order of FIELDS."""

    def __init__(self) -> None:
        self.num_unreadable = 0
        self._lost: dict[str, tuple[int, int]] = {}
        """What a chat template does not print -> (rows that hold it, the first line of them)."""
        self._first_unreadable: tuple[int, str] | None = None
        self._numbers = array("i")

    def add(self, texts: Sequence[Tokens]) -> None:
        """Add a row: its text, or the two texts of a preference.

        The longer text says how long the row is. The row has no answer in the loss if one of the
        texts has none, as in TRL.
        """
        firsts = [NEVER if text.first_in_loss is None else text.first_in_loss for text in texts]
        lengths = [len(text.ids) for text in texts]
        end = max(text.end_in_loss for text in texts)
        self._numbers.extend((max(lengths), max(firsts), end, sum(lengths)))

    def add_unreadable(self, line: int, reason: str) -> None:
        """Add a row that has no tokens because something is wrong with it."""
        self.num_unreadable += 1
        this = (line, reason)
        self._first_unreadable = min(self._first_unreadable or this, this)

    def add_lost(self, line: int, fields: Iterable[str]) -> None:
        """Add what the chat template does not print of a row."""
        for name in fields:
            rows, first = self._lost.get(name, (0, line))
            self._lost[name] = (rows + 1, min(first, line))

    def since(self, row: int) -> dict[str, Any]:
        """Return the numbers from the `row`-th readable row on, as many as are sent at once."""
        width, end = len(FIELDS), row + ROWS_AT_ONCE
        numbers = self._numbers[row * width : end * width]
        return {
            "numbers": base64.b64encode(numbers.tobytes()).decode(),
            "unreadable_rows": self.num_unreadable,
            "first_unreadable": self._first_unreadable,
            "lost": [(name, *found) for name, found in self._lost.items()],
            "has_more": len(self._numbers) > end * width,
        }
