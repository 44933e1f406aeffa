"""Elements of one JSON array or object, cut out while it is read. Changes no element."""

import re
from collections.abc import Iterator, Sequence

import orjson

from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import MAX_LINE_BYTES, ByteSource, LineBlock
from core.training.contract.messages import Fault

STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
TOKEN = re.compile(STRING + rb'|["\[\]{},]', re.DOTALL)
"""Whole string, the beginning of an incomplete one, or a character of the structure."""
KEY = re.compile(rb"\s*(" + STRING + rb")\s*:", re.DOTALL)
QUOTE, COMMA, LIST = b'",['
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


class JsonElements:
    """Array or object that is cut into its elements while it is read. The first is line 1.

    `path` names the keys that lead to it through the objects around it; None stands for every key
    that leads to a list. What follows it is not looked at. Of an object the elements are the
    values.
    """

    def __init__(
        self, source: ByteSource, path: Sequence[str | None] = (), *, is_object: bool = False
    ) -> None:
        self._source, self._path, self._is_object = source, path, is_object
        self.is_whole = False
        """True once it was closed, an array with nothing after it."""
        self._buffer = b""
        self._depth = 0
        self._num_on_path = 0
        """Brackets that were opened on the way to the elements, the last around them."""
        self._key = ""
        self._is_closed = False
        self._num_elements = 0

    def blocks(self) -> Iterator[LineBlock]:
        """Yield the elements without line feeds; one that is too long is None and the last."""
        scanned = 0
        while not self._is_done and (data := self._source.read()):
            self._buffer += data
            elements, scanned = self._cut(scanned)
            if elements:
                yield _block(elements)
            if len(self._buffer) > MAX_LINE_BYTES:
                yield LineBlock((self._num_elements + 1,), (None,), b"")
                break
        else:
            if self._buffer.strip() and not self._is_done:
                yield _block([self._element(self._buffer)])
        while self._source.read():  # the hash is of the whole file
            pass

    @property
    def _is_done(self) -> bool:
        return self._is_closed and bool(self._path)

    def _cut(self, scanned: int) -> tuple[list[tuple[int, bytes]], int]:
        """Return (the elements that are complete, how much of the rest was scanned)."""
        buffer, begin, level = self._buffer, 0, len(self._path) + 1
        elements: list[tuple[int, bytes]] = []
        for token in TOKEN.finditer(buffer, scanned):
            at, end = token.span()
            sign = buffer[at]
            if self._is_closed or (sign == QUOTE and end - at == 1):
                # What follows the array stays in the buffer, as one broken element. A string whose
                # rest is still to come is scanned again with the next bytes.
                break
            if self._num_on_path < level:
                self._approach(buffer, at, end)
                begin = end
            elif sign in OPENING:
                self._depth += 1
            elif sign == COMMA and self._depth == level:
                elements.append(self._element(buffer[begin:at]))
                begin = end
            elif sign not in (QUOTE, COMMA):  # a closing bracket
                self._depth -= 1
                if self._depth < level:
                    self._leave()
                    elements.append(self._element(buffer[begin:at]))
                    begin = end
            scanned = end
        self._buffer = buffer[begin:]
        self.is_whole = self._is_closed and (bool(self._path) or not self._buffer.strip())
        return elements, scanned - begin

    def _leave(self) -> None:
        """Note that the elements end here, unless there are other lists of them."""
        if self._path and self._path[-1] is None:
            self._num_on_path = self._depth
        else:
            self._is_closed = True

    def _approach(self, buffer: bytes, at: int, end: int) -> None:
        """Follow the path with a token that stands before the elements."""
        sign = buffer[at]
        is_beside_path = self._depth == self._num_on_path
        if sign in OPENING:
            if is_beside_path and self._is_on_path(sign):
                self._num_on_path += 1
            self._depth += 1
        elif sign == QUOTE:
            if is_beside_path and end - at < MAX_LINE_BYTES:
                self._key = _text(buffer[at:end])
        elif sign == COMMA:
            if is_beside_path:
                self._key = ""
        else:
            self._depth -= 1
            if self._depth < self._num_on_path:
                self._num_on_path = self._depth
                self._is_closed = True

    def _is_on_path(self, opening: int) -> bool:
        """Return whether this bracket leads to the elements."""
        if not self._depth:
            return True
        wanted = self._path[self._depth - 1]
        return opening == LIST if wanted is None else self._key == wanted

    def _element(self, raw: bytes) -> tuple[int, bytes]:
        """Return (its number, the element on one line)."""
        self._num_elements += 1
        if self._is_object and (key := KEY.match(raw)):
            raw = raw[key.end() :]
        return self._num_elements, raw.strip().replace(b"\n", b" ")


def _block(elements: list[tuple[int, bytes]]) -> LineBlock:
    numbers, lines = zip(*elements, strict=True)
    return LineBlock(numbers, lines, b"\n".join(lines))


def _text(string: bytes) -> str:
    """Return the text of a JSON string; "" if it is not sound."""
    try:
        return str(orjson.loads(string))
    except orjson.JSONDecodeError:
        return ""
