"""From bytes to rows: cuts a file into lines, parses each, and names what is wrong with those that are no JSON.

The trainer reads the same lines with `json.loads`: nothing passes here that it would refuse, or read as something
else. Memory stays flat: one block of lines at a time. Knows nothing of what the rows mean.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from core.dataset.check.diagnosis import MAX_DEPTH, MAX_LINE_BYTES, TOO_DEEP, TOO_LONG, diagnose
from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row

BLOCK_BYTES = 2**18
CONTAINERS = frozenset((dict, list))
SPACED_COLON = re.compile(rb'"[ \t\r]+:')
"""A key with space before its colon, or the look of one inside a text."""
ESCAPED_QUOTE_OR_COLON = re.compile(rb"\\u00(?:22|3[Aa])")
BETWEEN_ROWS = secrets.randbelow(2**52)
"""Parsed between rows that are parsed together: a number that no file can know, so that none can imitate it."""


class Block(NamedTuple):
    """Some lines, with the number of each; a line longer than MAX_LINE_BYTES is None."""

    numbers: Sequence[int]
    lines: Sequence[bytes | None]
    text: bytes
    """What the lines were cut from: for tests that are cheaper on many lines at once."""


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; empty at the end."""
        ...


@dataclass
class Source:
    """A file, read once from its beginning to its end."""

    file: Readable
    num_bytes: int = 0
    """Read so far."""
    digest: Any = field(default_factory=hashlib.sha256)
    on_bytes: Callable[[int], None] = lambda _num_bytes: None
    is_at_end: bool = False

    def read(self) -> bytes:
        """The next block of bytes; empty at the end."""
        data = self.file.read(BLOCK_BYTES)
        self.digest.update(data)
        self.num_bytes += len(data)
        self.is_at_end = not data
        self.on_bytes(self.num_bytes)
        return data


def blocks_of_lines(source: Source) -> Iterator[Block]:
    """The lines of a JSONL file, without their ends. Only a line feed ends a line, as for the trainer."""
    number, held, is_too_long = 1, b"", False
    while data := source.read():
        text, feed, rest = (held + data).rpartition(b"\n")
        if feed:
            lines: list[bytes | None] = [*text.split(b"\n")]
            if is_too_long or len(lines[0] or b"") > MAX_LINE_BYTES:
                lines[0] = None
            yield Block(range(number, number + len(lines)), lines, text)
            number, is_too_long = number + len(lines), False
        held = rest
        if len(held) > MAX_LINE_BYTES:
            held, is_too_long = b"", True
    if held or is_too_long:
        yield Block((number,), (None if is_too_long else held,), held)


def parse_block(block: Block) -> Iterable[tuple[int, bytes | None, Row | None, Fault | None]]:
    """(number, line, the row, what is wrong with it) of every line; a blank line has neither row nor fault."""
    rows = _all_rows(block)
    return zip(block.numbers, block.lines, rows, repeat(None)) if rows else _parse_each(block)


def _parse_each(block: Block) -> Iterator[tuple[int, bytes | None, Row | None, Fault | None]]:
    spaced_colon = SPACED_COLON.search if SPACED_COLON.search(block.text) else None
    for number, line in zip(block.numbers, block.lines, strict=True):
        yield number, line, *parse(line, bool(spaced_colon and line and spaced_colon(line)))


def _all_rows(block: Block) -> list[Row] | None:
    """Every row of a block, parsed at once, if all of its lines are certainly sound: the quick way for most blocks.

    A key that stands twice in an object is lost in parsing; written again, the rows then have fewer signs of keys.
    """
    signs = np.frombuffer(block.text, dtype=np.uint8)
    if _has_peculiar_keys(block.text, signs):
        return None
    try:
        values = orjson.loads(b"[" + (b",%d," % BETWEEN_ROWS).join(block.lines) + b"]")  # type: ignore[arg-type]
    except (orjson.JSONDecodeError, TypeError):  # TypeError: a line is None
        return None
    rows: list[Row] = values[::2]
    is_row_a_line = len(rows) == len(block.lines) and values[1::2] == [BETWEEN_ROWS] * (
        len(rows) - 1
    )
    if not is_row_a_line or set(map(type, rows)) != {dict} or _is_any_too_deep(rows, signs):
        return None
    written = np.frombuffer(orjson.dumps(rows), dtype=np.uint8)
    return rows if _count_keys_by_sign(signs) == _count_keys_by_sign(written) else None


def _has_peculiar_keys(text: bytes, signs: NDArray[np.uint8]) -> bool:
    """True if a key may end in something else than a quote and a colon: space between them, or one in an escape."""
    before, after = signs[:-1], signs[1:]
    if ((before <= ord(" ")) & (after == ord(":"))).any() and SPACED_COLON.search(text):
        return True
    return (
        bool(((before == ord("\\")) & (after == ord("u"))).any())
        and ESCAPED_QUOTE_OR_COLON.search(text) is not None
    )


def _count_keys_by_sign(signs: NDArray[np.uint8]) -> int:
    """How often a quote stands before a colon, as after every key: ten times as fast as `bytes.count`."""
    return int(np.count_nonzero((signs[:-1] == ord('"')) & (signs[1:] == ord(":"))))


def _is_any_too_deep(rows: Sequence[Row], signs: NDArray[np.uint8]) -> bool:
    """True if a row is nested too deep. Looks only at those with many opening brackets; [ and { differ in one bit."""
    brackets = np.flatnonzero(signs | 0x20 == ord("{"))
    ends = np.searchsorted(brackets, np.flatnonzero(signs == ord("\n")))
    num_brackets = np.diff(ends, prepend=0, append=len(brackets))
    try:
        for index in np.flatnonzero(num_brackets > MAX_DEPTH):
            _count_keys(rows[int(index)], MAX_DEPTH)
    except RecursionError:
        return True
    return False


def parse(line: bytes | None, is_suspect: bool = False) -> tuple[Row | None, Fault | None]:
    """(the row, what is wrong with its line); both None for a blank line.

    `is_suspect` asks for the exact look at keys, for lines with space before a colon.
    """
    if line is None:
        return None, TOO_LONG
    try:
        row = orjson.loads(line)
        if type(row) is dict and not is_suspect:
            num_keys = _count_keys(row, MAX_DEPTH)
            if line.count(b'":') == num_keys or _has_only(num_keys, line):
                return row, None
    except orjson.JSONDecodeError as error:
        return diagnose(line, str(error))
    except RecursionError:
        return None, TOO_DEEP
    return diagnose(line)


def _has_only(num_keys: int, line: bytes) -> bool:
    """True if counts alone show that a line has no more keys than these, so that none stands twice in an object.

    Every key ends in `":`, so a line has at least as many of these as keys, those of escaped quotes in texts left out.
    If there are only as many as there are keys after parsing, none was lost to a later one of the same name.
    """
    return line.count(b'":') - line.count(b'\\":') == num_keys and b'\\\\":' not in line


def _count_keys(value: Any, depth: int) -> int:
    """Keys of all objects inside an object or array. Raises RecursionError if nested more than `depth` deep."""
    if depth == 0:
        raise RecursionError
    num_keys, inside = 0, value
    if type(value) is dict:
        num_keys, inside = len(value), value.values()
    for each in inside:
        if type(each) in CONTAINERS:
            num_keys += _count_keys(each, depth - 1)
    return num_keys
