"""Parse all lines of a block at once, which takes half the time of parsing each.

Only certain cases count: whenever a line might be unsound, the caller parses line by line.
"""

import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from core.dataset.reading.json_faults import MAX_NESTING
from core.training.contract.row_columns import Row

SPACED_COLON = re.compile(rb'"[ \t\r]+:')
"""Key with space before its colon, or a text that looks like one."""
ESCAPED_QUOTE_OR_COLON = re.compile(rb"\\u00(?:22|3[Aa])")
SEPARATOR = secrets.randbelow(2**52)
"""Number between two rows. It is random, so that no file can hold it and shift its rows."""
BRACKET_BIT = 0x20
"""`[` and `{` differ in this bit only."""
Bytes = NDArray[np.uint8]


def parse_whole_block(lines: Sequence[bytes | None], text: bytes) -> list[Row] | None:
    """Return the row of every line, `text` being all lines; None if a line may not be sound.

    JSON allows a key twice in one object, and parsing loses the first. Such rows have fewer keys
    when they are written again: every key is a quote before a colon, and so the number of these
    must not change.
    """
    signs = np.frombuffer(text, dtype=np.uint8)
    if _has_unusual_keys(text, signs):
        return None
    try:
        separator = b",%d," % SEPARATOR
        values = orjson.loads(b"[" + separator.join(lines) + b"]")  # type: ignore[arg-type]
    except (orjson.JSONDecodeError, TypeError):  # TypeError: a line that is too long is None
        return None
    rows: list[Row] = values[::2]
    if len(rows) != len(lines) or values[1::2] != [SEPARATOR] * (len(rows) - 1):
        return None  # some line holds no value, or several
    if set(map(type, rows)) != {dict} or _is_any_too_deep(rows, signs):
        return None
    written = np.frombuffer(orjson.dumps(rows), dtype=np.uint8)
    return rows if _count_keys(signs) == _count_keys(written) else None


def has_spaced_colon(text: bytes) -> bool:
    """Return whether there may be a key with space before its colon."""
    return SPACED_COLON.search(text) is not None


def _has_unusual_keys(text: bytes, signs: Bytes) -> bool:
    """Return whether a key may not end in a quote and a colon: in a space, or in an escape."""
    # numpy finds the pairs of bytes ten times as fast as the patterns, which need to look rarely.
    before, after = signs[:-1], signs[1:]
    if ((before <= ord(" ")) & (after == ord(":"))).any() and has_spaced_colon(text):
        return True
    has_escapes = ((before == ord("\\")) & (after == ord("u"))).any()
    return bool(has_escapes) and ESCAPED_QUOTE_OR_COLON.search(text) is not None


def _count_keys(signs: Bytes) -> int:
    """Count the quotes before a colon."""
    return int(np.count_nonzero((signs[:-1] == ord('"')) & (signs[1:] == ord(":"))))


def _is_any_too_deep(rows: Sequence[Row], signs: Bytes) -> bool:
    """Return whether a row is nested too deep. Only rows with many brackets are looked at."""
    brackets = np.flatnonzero(signs | BRACKET_BIT == ord("{"))
    ends = np.searchsorted(brackets, np.flatnonzero(signs == ord("\n")))
    num_brackets = np.diff(ends, prepend=0, append=len(brackets))
    suspects = np.flatnonzero(num_brackets > MAX_NESTING)
    return any(_is_deeper(rows[int(index)], MAX_NESTING) for index in suspects)


def _is_deeper(value: Any, depth: int) -> bool:
    """Return whether objects and arrays are nested more than `depth` levels deep."""
    if type(value) is not dict and type(value) is not list:
        return False
    inside = value.values() if type(value) is dict else value
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in inside)
