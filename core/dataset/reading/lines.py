"""From bytes to rows: cut a file into lines, parse each, and name what is wrong with a bad one.

The training program reads the same lines with `json.loads`: no line passes here that it would
refuse, or read as something else. One block of lines is in memory at a time. Knows nothing of what
the rows mean.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import orjson

from core.dataset.reading.json_faults import MAX_NESTING, TOO_DEEP, explain_line
from core.dataset.reading.whole_blocks import has_spaced_colon, parse_whole_block
from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row

BLOCK_BYTES = 2**18
MAX_LINE_BYTES = 8 * 2**20
TOO_LONG = Fault(
    "row",
    "line_too_long",
    f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB",
    "split it into several rows",
)


class LineBlock(NamedTuple):
    """Some lines, with the number of each; a line longer than MAX_LINE_BYTES is None."""

    numbers: Sequence[int]
    lines: Sequence[bytes | None]
    text: bytes
    """The lines uncut: for tests that are cheaper on many lines at once."""


class Readable(Protocol):
    """Source of bytes, such as a file."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; empty at the end."""
        ...


@dataclass
class ByteSource:
    """File that is read once from beginning to end, and hashed on the way."""

    file: Readable
    num_bytes: int = 0
    """Read so far."""
    digest: Any = field(default_factory=hashlib.sha256)
    is_at_end: bool = False

    def read(self) -> bytes:
        """Return the next block of bytes; empty at the end."""
        data = self.file.read(BLOCK_BYTES)
        self.digest.update(data)
        self.num_bytes += len(data)
        self.is_at_end = not data
        return data


def blocks_of_lines(source: ByteSource) -> Iterator[LineBlock]:
    """Yield the lines of a JSONL file, without their ends.

    Only a line feed ends a line, as for the training program.
    """
    number, rest, is_too_long = 1, b"", False
    while data := source.read():
        text, feed, rest = (rest + data).rpartition(b"\n")
        if feed:
            lines: list[bytes | None] = [*text.split(b"\n")]
            if is_too_long or len(lines[0] or b"") > MAX_LINE_BYTES:
                lines[0] = None
            yield LineBlock(range(number, number + len(lines)), lines, text)
            number += len(lines)
            is_too_long = False
        if len(rest) > MAX_LINE_BYTES:
            rest, is_too_long = b"", True
    if rest or is_too_long:
        yield LineBlock((number,), (None if is_too_long else rest,), rest)


def parse_block(
    block: LineBlock,
) -> Iterable[tuple[int, bytes | None, Row | None, Fault | None]]:
    """Return (number, line, row, fault) of every line; a blank line has neither row nor fault."""
    rows = parse_whole_block(block.lines, block.text)
    if rows:
        return zip(block.numbers, block.lines, rows, repeat(None))
    return _parse_each(block)


def _parse_each(
    block: LineBlock,
) -> Iterator[tuple[int, bytes | None, Row | None, Fault | None]]:
    is_suspicious = has_spaced_colon(block.text)
    for number, line in zip(block.numbers, block.lines, strict=True):
        is_exact = is_suspicious and line is not None and has_spaced_colon(line)
        yield number, line, *parse_line(line, is_exact=is_exact)


def parse_line(line: bytes | None, *, is_exact: bool = False) -> tuple[Row | None, Fault | None]:
    """Return (the row, what is wrong with its line); both None for a blank line.

    `is_exact` asks for the slow look at every key, for lines with space before a colon.
    """
    if line is None:
        return None, TOO_LONG
    try:
        row = orjson.loads(line)
        if type(row) is dict and not is_exact:
            num_keys = _count_keys(row, MAX_NESTING)
            if line.count(b'":') == num_keys or _has_unescaped_keys(num_keys, line):
                return row, None
    except orjson.JSONDecodeError as error:
        return explain_line(line, str(error))
    except RecursionError:
        return None, TOO_DEEP
    return explain_line(line)


def _has_unescaped_keys(num_keys: int, line: bytes) -> bool:
    """Return whether a line has just this many keys, so that none stands twice in an object.

    Every key ends in `":`, so a line has at least as many of these as keys, those of escaped quotes
    in texts left out. If they are as many as the keys after parsing, no key was lost to a later one
    of the same name.
    """
    return line.count(b'":') - line.count(b'\\":') == num_keys and b'\\\\":' not in line


def _count_keys(value: Any, depth: int) -> int:
    """Count the keys of all objects in a value. Raises RecursionError if it is nested deeper."""
    if depth == 0:
        raise RecursionError
    num_keys, inside = 0, value
    if type(value) is dict:
        num_keys, inside = len(value), value.values()
    for each in inside:
        if type(each) is dict or type(each) is list:
            num_keys += _count_keys(each, depth - 1)
    return num_keys
