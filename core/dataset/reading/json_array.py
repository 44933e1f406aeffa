"""Files that are one JSON array, read as lines: one for each element. Changes no element."""

import re
from collections.abc import Iterator

from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import MAX_LINE_BYTES, ByteSource, LineBlock
from core.training.contract.messages import Fault

TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""Whole string, the beginning of an incomplete one, or a character of the array's structure."""
QUOTE, COMMA = b'",'
OPENING = frozenset(b"[{")
NOT_AN_ARRAY = Fault(
    "file",
    "not_an_array",
    "the array is not closed, or something follows it",
    "write one array, from [ to ]",
)


def is_array(head: bytes) -> bool:
    """Return whether a file with these first bytes is one JSON array instead of lines."""
    return head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


class JsonArray:
    """Array that is cut into its elements while it is read. The first element is line 1."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.is_whole = False
        """True once the array was closed with nothing after it."""
        self._buffer = b""
        self._depth = 0
        self._is_closed = False
        self._num_elements = 0

    def blocks(self) -> Iterator[LineBlock]:
        """Yield the elements without line feeds; one that is too long is None and the last."""
        scanned = 0
        while data := self._source.read():
            self._buffer += data
            elements, scanned = self._cut(scanned)
            if elements:
                yield _block(elements)
            if len(self._buffer) > MAX_LINE_BYTES:
                yield LineBlock((self._num_elements + 1,), (None,), b"")
                break
        else:
            if self._buffer.strip():
                yield _block([self._element(self._buffer)])
        while self._source.read():  # the hash is of the whole file
            pass

    def _cut(self, scanned: int) -> tuple[list[tuple[int, bytes]], int]:
        """Return (the elements that are complete, how much of the rest was scanned)."""
        buffer, begin = self._buffer, 0
        elements: list[tuple[int, bytes]] = []
        for token in TOKEN.finditer(buffer, scanned):
            at, end = token.span()
            sign = buffer[at]
            if self._is_closed or (sign == QUOTE and end - at == 1):
                # What follows the array stays in the buffer, as one broken element. A string whose
                # rest is still to come is scanned again with the next bytes.
                break
            if sign in OPENING:
                self._depth += 1
                if self._depth == 1:
                    begin = end
            elif sign == COMMA and self._depth == 1:
                elements.append(self._element(buffer[begin:at]))
                begin = end
            elif sign not in (QUOTE, COMMA):  # a closing bracket
                self._depth -= 1
                if self._depth <= 0:
                    self._is_closed = True
                    elements.append(self._element(buffer[begin:at]))
                    begin = end
            scanned = end
        self._buffer = buffer[begin:]
        self.is_whole = self._is_closed and not self._buffer.strip()
        return elements, scanned - begin

    def _element(self, raw: bytes) -> tuple[int, bytes]:
        """Return (its number, the element on one line)."""
        self._num_elements += 1
        return self._num_elements, raw.strip().replace(b"\n", b" ")


def _block(elements: list[tuple[int, bytes]]) -> LineBlock:
    numbers, lines = zip(*elements, strict=True)
    return LineBlock(numbers, lines, b"\n".join(lines))
