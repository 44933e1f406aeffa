"""From bytes to rows: cuts a file into lines, parses each, and names what is wrong with those that are no JSON.

The trainer reads the same lines with `json.loads`: nothing passes here that it would refuse, or read as something
else. Memory stays flat: one block of lines at a time. Knows nothing of what the rows mean.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import orjson

from core.dataset.diagnosis import MAX_DEPTH, MAX_LINE_BYTES, TOO_DEEP, TOO_LONG, diagnose
from core.dataset.report import Fault, Row

BLOCK_BYTES = 2**20
CONTAINERS = frozenset((dict, list))
SPACED_COLON = re.compile(rb'"[ \t\r]+:')
"""A key with space before its colon, or the look of one inside a text."""


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
