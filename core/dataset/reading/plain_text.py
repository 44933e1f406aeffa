"""Plain text as rows: split at blank lines, at every line, or not at all. Changes no word."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import orjson

from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import MAX_LINE_BYTES, ByteSource, LineBlock, blocks_of_lines

Split = Literal["paragraphs", "lines", "whole"]
SPLITS: Mapping[Split, str] = MappingProxyType(
    {
        "paragraphs": "split at blank lines",
        "lines": "split at every line",
        "whole": "taken as one text",
    }
)
"""Way to make rows of a text -> what is done."""
TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".text")
BLANK_LINE = re.compile(rb"\S[^\n]*\n[ \t\r]*\n\s*\S")
BEGIN_OF_JSON = re.compile(rb"""[ \t\r]*(?:\{\s*["'}]|\[\s*(?:[\[{"\]]|$))""")
LARGEST_WHOLE_BYTES = 8192
"""About the tokens of the usual max_length. A longer text would be cut off there."""
USUAL_LINE_BYTES = 200
"""Longer lines, on average, are paragraphs of their own."""


def looks_like_json(line: bytes) -> bool:
    """Return whether a line begins as an object, a list of values or a list of texts does."""
    return BEGIN_OF_JSON.match(line) is not None


def is_json_string(line: bytes) -> bool:
    """Return whether a line is one JSON string."""
    if not line.lstrip().startswith(b'"'):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def usual_split(head: bytes, *, is_all: bool) -> Split:
    """Return how a text with these first bytes is split unless a user says how."""
    if BLANK_LINE.search(head):
        return "paragraphs"
    num_lines = head.strip().count(b"\n") + 1
    has_long_lines = num_lines > 1 and len(head) / num_lines > USUAL_LINE_BYTES
    if is_all and len(head) <= LARGEST_WHOLE_BYTES and not has_long_lines:
        return "whole"
    return "lines"


def text_blocks(source: ByteSource, split: Split) -> Iterator[LineBlock]:
    """Yield a text as rows of JSON; each has the number of its first line.

    A part that is no sound UTF-8 is yielded as it is, so that a check names it.
    """
    part = _Part()
    for block in blocks_of_lines(source):
        rows = []
        for number, line in zip(block.numbers, block.lines, strict=True):
            if split == "lines" or (split == "paragraphs" and line is not None and _is_blank(line)):
                rows += part.rows()
                part = _Part()
            part.add(number, line)
        if rows:
            yield _block(rows)
    if rest := part.rows():
        yield _block(rest)


class _Part:
    """Lines of a text that become one row."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._number = 0
        self._num_bytes = 0
        self._is_too_long = False

    def add(self, number: int, line: bytes | None) -> None:
        """Add a line; None is one that is too long. Blank lines do not begin a part."""
        if line is None:
            self._is_too_long = True
            self._number = self._number or number
            return
        line = line.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\r")
        if not self._lines and _is_blank(line):
            return
        self._number = self._number or number
        self._num_bytes += len(line) + 1
        self._is_too_long = self._is_too_long or self._num_bytes > MAX_LINE_BYTES
        if not self._is_too_long:
            self._lines.append(line)

    def rows(self) -> list[tuple[int, bytes | None]]:
        """Return the number and the row of the part; nothing if all its lines are blank."""
        if self._is_too_long:
            return [(self._number, None)]
        text = b"\n".join(self._lines).rstrip()
        return [(self._number, _row(text))] if text else []


def _row(text: bytes) -> bytes:
    if b"\0" in text:
        return text
    try:
        return orjson.dumps({"text": text.decode()})
    except UnicodeDecodeError:
        return text


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def _block(rows: list[tuple[int, bytes | None]]) -> LineBlock:
    numbers, lines = zip(*rows, strict=True)
    return LineBlock(numbers, lines, b"\n".join(line or b"" for line in lines))
