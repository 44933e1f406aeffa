"""Objects that are not one complete row on a line: over several lines, or several on one line.

Cuts and joins what stands between texts; never changes a text.
"""

import re
from collections.abc import Iterable, Iterator

from core.dataset.reading.json_faults import STRING
from core.dataset.reading.lines import MAX_LINE_BYTES, parse_line

STRING_OR_BRACKET = re.compile(STRING.pattern + rb"|[\[\]{}]", re.DOTALL)
STRING_OR_LAST_COMMA = re.compile(STRING.pattern + rb"|,(?=\s*[}\]])", re.DOTALL)
NumberedLine = tuple[int, bytes | None]
"""Number of a line, and its bytes; None if it is too long."""
SEPARATORS = b", \t\r\n"
"""Characters that may stand between two objects, and are left out."""


class LineJoiner:
    """Joins objects that are spread over lines, and counts those that it brought onto one line.

    A line with open brackets waits until a later line closes them. If none does, or the result is
    no row, all of them are given unchanged.
    """

    def __init__(self) -> None:
        self.num_objects = 0
        self._waiting: list[NumberedLine] = []
        self._depth = 0
        self._num_bytes = 0

    def lines(self, lines: Iterable[NumberedLine]) -> Iterator[NumberedLine]:
        """Yield the lines, with each object on the line on which it begins."""
        for number, line in lines:
            if line is None:
                yield from self._release()
                yield number, None
                continue
            # Sound lines are most of a usual file, and parsed faster than their brackets counted.
            may_be_sound = not self._waiting and line.rstrip().endswith(b"}")
            is_sound = may_be_sound and parse_line(line)[1] is None
            depth = 0 if is_sound else open_brackets(line)
            if not self._waiting and depth <= 0:
                yield number, line
                continue
            self._waiting.append((number, line))
            self._depth += depth
            self._num_bytes += len(line)
            if self._depth <= 0:
                self._join()
            if self._depth <= 0 or self._num_bytes > MAX_LINE_BYTES:
                yield from self._release()
        yield from self._release()

    def _join(self) -> None:
        whole = b" ".join((line or b"").strip() for _number, line in self._waiting)
        rows = (whole,) if parse_line(whole)[1] is None else split_rows(whole)
        if len(rows) > 1 or _is_row(rows[0]):
            self.num_objects += len(rows)
            number = self._waiting[0][0]
            self._waiting = [(number, row) for row in rows]

    def _release(self) -> list[NumberedLine]:
        released, self._waiting = self._waiting, []
        self._depth = self._num_bytes = 0
        return released


def one_object_a_line(lines: Iterable[NumberedLine], joiner: LineJoiner) -> Iterator[NumberedLine]:
    """Yield each object on one line, with the number of the line on which it begins."""
    for number, line in joiner.lines(lines):
        if line is None or parse_line(line)[1] is None:
            yield number, line
        else:
            rows = split_rows(line)
            if len(rows) > 1:
                joiner.num_objects += len(rows)
            yield from ((number, row) for row in rows)


def split_rows(line: bytes) -> tuple[bytes, ...]:
    """Return the rows of a line that holds nothing but whole rows; otherwise the line itself."""
    rows: list[bytes] = []
    depth, begin, end = 0, 0, 0
    for token in STRING_OR_BRACKET.finditer(line):
        sign = token.group()
        if sign in (b"{", b"["):
            if depth == 0:
                begin = token.start()
                if line[end:begin].strip(SEPARATORS):
                    return (line,)
            depth += 1
        elif sign in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                end = token.end()
                rows.append(line[begin:end])
    if depth or not rows or line[end:].strip(SEPARATORS) or not all(map(_is_row, rows)):
        return (line,)
    return tuple(rows)


def without_last_commas(line: bytes) -> bytes:
    """Return a line without commas before closing brackets, if that makes it a row."""
    _row, fault = parse_line(line)
    if fault is None or fault.code != "trailing_comma":
        return line
    fixed = STRING_OR_LAST_COMMA.sub(lambda match: match.group().removeprefix(b","), line)
    return fixed if parse_line(fixed)[1] is None else line


def _is_row(line: bytes) -> bool:
    row, fault = parse_line(without_last_commas(line))
    return row is not None and fault is None


def open_brackets(line: bytes) -> int:
    """Return how many more brackets are opened than closed."""
    signs = [token.group() for token in STRING_OR_BRACKET.finditer(line)]
    return sum((sign in (b"{", b"[")) - (sign in (b"}", b"]")) for sign in signs)
