"""Outline of a JSON text that may be too large to parse: its first value, long lists cut short."""

import re
from collections.abc import Iterator
from typing import Any

import orjson

from core.dataset.reading.json_elements import STRING
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import MAX_LINE_BYTES, ByteSource

PIECE = re.compile(STRING + rb'|["\[\]{},]|[^"\[\]{},]++', re.DOTALL)
"""Whole string, the beginning of an incomplete one, a character of the structure, or the rest."""
MAX_CHILDREN = 100
"""Elements of a list or object that are kept."""
QUOTE, COMMA = b'"', b","
OPENING, CLOSING = frozenset((b"[", b"{")), frozenset((b"]", b"}"))


class Outline:
    """First value of a JSON text with the first children of each list and object in it."""

    def __init__(self, source: ByteSource) -> None:
        self.value: Any = None
        """None if the text does not begin with a sound list or object, or if even the first
        children are too large."""
        self.has_more = False
        """True if something follows the value."""
        self._source = source
        self._rest = b""
        self._pieces: list[bytes] = []
        self._num_children: list[int] = []
        """Complete children of each open list and object, the outermost first."""
        self._skipped_depth = 0
        """Depth of the list or object whose further children are skipped; 0 if none are."""
        self._read()

    def _read(self) -> None:
        num_bytes, is_closed = 0, False
        for piece in self._all_pieces():
            if is_closed:
                if piece.strip():
                    self.has_more = True
                    break
                continue
            if self._keeps(piece):
                self._pieces.append(piece)
                num_bytes += len(piece)
            is_closed = piece in CLOSING and not self._num_children
            if num_bytes > MAX_LINE_BYTES:
                return
        try:
            self.value = orjson.loads(b"".join(self._pieces).removeprefix(BYTE_ORDER_MARK))
        except orjson.JSONDecodeError:
            return

    def _all_pieces(self) -> Iterator[bytes]:
        """Yield the text piece by piece; ends early at a string that is too long."""
        while data := self._source.read():
            buffer, end = self._rest + data, 0
            for match in PIECE.finditer(buffer):
                if match.group() == QUOTE:
                    break
                end = match.end()
                yield match.group()
            self._rest = buffer[end:]
            if len(self._rest) > MAX_LINE_BYTES:
                return

    def _keeps(self, piece: bytes) -> bool:
        """Follow one piece; return whether it is part of the outline."""
        depth = len(self._num_children)
        if piece in CLOSING:
            if depth:
                self._num_children.pop()
            if depth == self._skipped_depth:
                self._skipped_depth = 0
        elif piece in OPENING:
            self._num_children.append(0)
        elif piece == COMMA and depth and not self._skipped_depth:
            self._num_children[-1] += 1
            if self._num_children[-1] >= MAX_CHILDREN:
                self._skipped_depth = depth
        return not self._skipped_depth
