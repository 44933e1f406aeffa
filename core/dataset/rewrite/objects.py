"""Objects that are not one complete row on a line: spread over lines, several on one, with commas too many.

Cuts and joins what stands between texts; never changes a text.
"""

import re
from collections.abc import Iterable, Iterator

from core.dataset.check.diagnosis import MAX_LINE_BYTES, STRING
from core.dataset.check.lines import parse

PIECE = re.compile(STRING.pattern + rb"|[\[\]{}]", re.DOTALL)
COMMA_BEFORE_BRACKET = re.compile(STRING.pattern + rb"|,(?=\s*[}\]])", re.DOTALL)
BETWEEN = b", \t\r\n"
"""What may stand between two objects, and is left out."""


class Joiner:
    """Puts objects that are spread over lines together; counts the lines that it joined.

    An open line is held until what follows closes its brackets. If that never happens, or no rows come of it, all of
    it is given as it was.
    """

    def __init__(self) -> None:
        self.num_joined = 0
        self._held: list[bytes] = []
        self._depth = 0
        self._num_bytes = 0

    def lines(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines, or what they are together."""
        for line in lines:
            depth = _depth(line) if self._held or parse(line)[1] else 0
            if not self._held and depth <= 0:
                yield line
                continue
            self._held.append(line)
            self._depth += depth
            self._num_bytes += len(line)
            if self._depth <= 0:
                self._join()
            if self._depth <= 0 or self._num_bytes > MAX_LINE_BYTES:
                yield from self._let_go()
        yield from self._let_go()

    def _join(self) -> None:
        whole = b" ".join(map(bytes.strip, self._held))
        parts = rows_of(whole)
        if len(parts) > 1 or _is_row(parts[0]):
            self.num_joined += len(self._held)
            self._held = [whole]

    def _let_go(self) -> list[bytes]:
        held, self._held, self._depth, self._num_bytes = self._held, [], 0, 0
        return held


def rows_of(line: bytes) -> tuple[bytes, ...]:
    """The rows of a line that holds nothing but whole rows; otherwise the line as it is."""
    found: list[bytes] = []
    depth, begin, end = 0, 0, 0
    for piece in PIECE.finditer(line):
        sign = piece.group()
        if sign in (b"{", b"["):
            if depth == 0:
                found.append(line[end : piece.start()])
                begin = piece.start()
            depth += 1
        elif sign in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                end = piece.end()
                found.append(line[begin:end])
    found.append(line[end:])
    gaps, rows = found[::2], found[1::2]
    is_sound = (
        depth == 0
        and rows
        and not any(gap.strip(BETWEEN) for gap in gaps)
        and all(map(_is_row, rows))
    )
    return tuple(rows) if is_sound else (line,)


def without_commas(line: bytes) -> bytes:
    """The line without the commas before closing brackets, if that makes it a row; otherwise the line as it is."""
    _row, fault = parse(line)
    if fault is None or fault.code != "trailing_comma":
        return line
    fixed = COMMA_BEFORE_BRACKET.sub(
        lambda found: b"" if found.group() == b"," else found.group(), line
    )
    return fixed if parse(fixed)[1] is None else line


def _is_row(line: bytes) -> bool:
    row, fault = parse(without_commas(line))
    return row is not None and fault is None


def _depth(line: bytes) -> int:
    """How many more brackets are opened than closed."""
    signs = [piece.group() for piece in PIECE.finditer(line)]
    return sum((sign in (b"{", b"[")) - (sign in (b"}", b"]")) for sign in signs)
