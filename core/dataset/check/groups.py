"""Faults of many rows that say the same, so that a user reads each sentence once."""

import re
from collections import Counter

from core.dataset.report import LISTED_LINES, ProblemGroup, RowProblem
from core.training.contract.messages import Fault

MAX_GROUPS = 100
MAX_REMEMBERED = 1000
NUMBER = re.compile(r"\d+")


class Groups:
    """Faults that say the same, counted by rows. Remembers a bounded number of them."""

    def __init__(self) -> None:
        self._firsts: dict[tuple[str, ...], RowProblem] = {}
        self._lines: dict[tuple[str, ...], list[int]] = {}
        """Lines of the first rows, and of the last one."""
        self._keys: dict[Fault, tuple[str, ...]] = {}
        self._num_rows: Counter[tuple[str, ...]] = Counter()

    def add(self, line: int, fault: Fault) -> None:
        """Count a fault with others that differ from it in numbers only."""
        key = self._keys.get(fault) or self._remember(fault)
        if key not in self._firsts:
            if len(self._firsts) >= MAX_GROUPS:
                return
            self._firsts[key], self._lines[key] = RowProblem(line, *fault), []
        lines = self._lines[key]
        if lines and lines[-1] == line:
            return  # another fault of the same row
        self._num_rows[key] += 1
        if len(lines) > LISTED_LINES:
            lines.pop()
        lines.append(line)

    def _remember(self, fault: Fault) -> tuple[str, ...]:
        """Return the key of a fault that was not seen before."""
        key = (fault.code, NUMBER.sub("#", fault.field), NUMBER.sub("#", fault.message))
        if len(self._keys) < MAX_REMEMBERED:
            self._keys[fault] = key
        return key

    def all(self) -> tuple[ProblemGroup, ...]:
        """Return each group, the one with the earliest line first."""
        found = []
        for key, first in self._firsts.items():
            lines = tuple(self._lines[key][:LISTED_LINES])
            found.append(ProblemGroup(first, self._num_rows[key], lines))
        return tuple(sorted(found, key=lambda group: group.first.line))
