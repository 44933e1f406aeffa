"""The elements of a JSON array, one line each: what makes a `.json` file readable as JSON lines. Changes no element."""

import re
from collections.abc import Iterator

from core.dataset.check.diagnosis import BYTE_ORDER_MARK, MAX_LINE_BYTES
from core.dataset.check.lines import Block, Source
from core.training.contract.messages import Fault

TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, the beginning of one that is not complete yet, or what gives an array its structure."""
QUOTE, COMMA = b'",'
NOT_AN_ARRAY = Fault(
    "file",
    "not_an_array",
    "the array is not closed, or something follows it",
    "write one array, from [ to ]",
)
OPEN = frozenset(b"[{")


def is_array(head: bytes) -> bool:
    """True if a file with these first bytes is one JSON array, not lines."""
    return head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


class Elements:
    """Cuts an array into its elements while it is read. The first is line 1, the second line 2."""

    def __init__(self, source: Source):
        self.source = source
        self.is_whole = False
        """True once the array was closed with nothing after it."""
        self._buffer = b""
        self._depth = 0
        self._is_closed = False
        self._num_elements = 0

    def blocks(self) -> Iterator[Block]:
        """The elements, as lines without line feeds; one that is too long is None and ends the reading."""
        scanned = 0
        while data := self.source.read():
            self._buffer += data
            found, scanned = self._cut(scanned)
            if found:
                yield _block(found)
            if len(self._buffer) > MAX_LINE_BYTES:
                yield Block((self._num_elements + 1,), (None,), b"")
                break
        else:
            if self._buffer.strip():
                yield _block([self._element(self._buffer)])
        while self.source.read():
            pass

    def _cut(self, scanned: int) -> tuple[list[tuple[int, bytes]], int]:
        """(the elements that are complete by now, how much of what is left over has been looked at)."""
        buffer, begin = self._buffer, 0
        found: list[tuple[int, bytes]] = []
        for token in TOKEN.finditer(buffer, scanned):
            at, end = token.span()
            sign = buffer[at]
            if (
                self._is_closed
            ):  # something follows the array: it stays in the buffer, as one broken element
                break
            if sign == QUOTE:
                if end - at == 1:  # the rest of the string is still to come
                    break
            elif sign in OPEN:
                self._depth += 1
                if self._depth == 1:
                    begin = end
            elif sign == COMMA:
                if self._depth == 1:
                    found.append(self._element(buffer[begin:at]))
                    begin = end
            else:
                self._depth -= 1
                if self._depth <= 0:
                    self._is_closed = True
                    found.append(self._element(buffer[begin:at]))
                    begin = end
            scanned = end
        self._buffer = buffer[begin:]
        self.is_whole = self._is_closed and not self._buffer.strip()
        return found, scanned - begin

    def _element(self, raw: bytes) -> tuple[int, bytes]:
        """(its number, itself on one line)."""
        self._num_elements += 1
        return self._num_elements, raw.strip().replace(b"\n", b" ")


def _block(found: list[tuple[int, bytes]]) -> Block:
    numbers, lines = zip(*found, strict=True)
    return Block(numbers, lines, b"\n".join(lines))
