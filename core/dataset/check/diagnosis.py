"""Why a line is no sound JSON object: the slow, exact look at the few lines that the fast parser did not pass.

Reads with `json`, as the trainer does, and looks at every pair of key and value. Never guesses what was meant.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 8 * 2**20
MAX_DEPTH = 32
"""Objects and arrays inside each other, the row itself included."""
TOO_LONG = Fault(
    "row",
    "line_too_long",
    f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB",
    "split it into several rows",
)
TOO_DEEP = Fault(
    "row", "too_deep", f"is nested more than {MAX_DEPTH} levels deep", "flatten the row"
)
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string; one that is not closed goes to the end, so that no text makes the search look twice at a byte."""
BRACKETS = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
ESCAPE_FOR = {"\t": "\\t", "\b": "\\b", "\f": "\\f"}


@dataclass(frozen=True)
class JsonFault:
    """One way of missing JSON: how it is recognised where the parser stopped, and what to say about it."""

    code: str
    applies: Callable[[str, int], bool]
    """(text of the line, index at which the parser stopped)."""
    message: str
    fix: str


JSON_FAULTS = (
    JsonFault(
        "trailing_comma",
        lambda text, at: text[:at].rstrip().endswith(",") and text[at : at + 1] in ("}", "]"),
        "a comma before a closing bracket",
        "remove the comma (a repair does it)",
    ),
    JsonFault(
        "quotes",
        lambda text, at: text[at : at + 1] == "'",
        "single quotes",
        "put strings in double quotes",
    ),
    JsonFault(
        "comment",
        lambda text, at: text[at:].startswith(("//", "/*", "#")),
        "a comment",
        "JSON has none: remove it",
    ),
    JsonFault(
        "python_literal",
        lambda text, at: text[at:].startswith(("None", "True", "False")),
        "a Python literal",
        "write null, true or false",
    ),
    JsonFault(
        "truncated",
        lambda text, at: at >= len(text),
        "the line ends in the middle of a value",
        "complete it, or drop the row",
    ),
)


def diagnose(line: bytes, refusal: str = "") -> tuple[Row | None, Fault | None]:
    """(the row, what is wrong with its line); both None for a blank line.

    `refusal` is what the fast parser said, if it refused the line.
    """
    bare = line.removeprefix(BYTE_ORDER_MARK).strip()
    if not bare:
        return None, None
    if fault := _bytes_fault(line):
        return None, fault
    if _is_too_deep(bare):
        return None, TOO_DEEP
    look = Look()
    try:
        value = json.loads(
            bare.decode(), object_pairs_hook=look.at_pairs, parse_constant=NotANumber
        )
    except json.JSONDecodeError as error:
        return None, _json_fault(error)
    except ValueError:  # more digits than Python turns into a number
        return None, Fault(
            "row", "number_too_large", "holds a number that is too large", "write it as text"
        )
    if not isinstance(value, dict):
        message = f"a row must be an object, not a {type(value).__name__}"
        return None, Fault("row", "not_object", message, 'write {"messages": [...]} or the like')
    if look.fault or not refusal:
        return (None, look.fault) if look.fault else (value, None)
    return _once_more(bare)


class NotANumber:
    """What stands for NaN, Infinity and -Infinity until it is reported."""

    def __init__(self, name: str):
        self.name = name


class Look:
    """Sees every object of a line while it is parsed, and keeps the first fault."""

    def __init__(self) -> None:
        self.fault: Fault | None = None

    def at_pairs(self, pairs: list[tuple[str, Any]]) -> Row:
        """The object of these pairs."""
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _value in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._note(
                Fault(_shown(twice), "duplicate_key", "is there more than once", "keep one of them")
            )
        for key, value in pairs:
            for text in (key, value, *(value if isinstance(value, list) else ())):
                if isinstance(text, NotANumber):
                    self._note(
                        Fault(
                            _shown(key),
                            "nan",
                            f"{text.name} is not a JSON number",
                            "use null or a number",
                        )
                    )
                elif isinstance(text, str) and not text.isascii() and _has_lone_surrogate(text):
                    self._note(
                        Fault(
                            _shown(key),
                            "lone_surrogate",
                            "half of a surrogate pair",
                            "write the whole character",
                        )
                    )
        return found

    def _note(self, fault: Fault) -> None:
        self.fault = self.fault or fault


def _once_more(bare: bytes) -> tuple[Row | None, Fault | None]:
    """What the fast parser makes of a line freed of what stands around it."""
    try:
        row = orjson.loads(bare)
    except orjson.JSONDecodeError as error:
        return None, Fault(
            "row", "not_json", str(error), "write one complete JSON object on each line"
        )
    return row, None


def _bytes_fault(line: bytes) -> Fault | None:
    if (at := line.find(b"\0")) >= 0:
        return Fault(
            "row", "nul", f"byte {at + 1} is NUL", "the file is damaged or not text: write it again"
        )
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return Fault(
            "row", "not_utf8", f"byte {error.start + 1} is not UTF-8", "save the file as UTF-8"
        )
    return None


def _is_too_deep(line: bytes) -> bool:
    """Looks at brackets outside strings only, taking away the innermost pairs level by level."""
    left = STRING.sub(b"", line).translate(BRACKETS, NO_BRACKETS)
    for _level in range(MAX_DEPTH):
        if b"[]" not in left:
            break
        left = left.replace(b"[]", b"")
    return b"[]" in left or left.count(b"[") > MAX_DEPTH


def _json_fault(error: json.JSONDecodeError) -> Fault:
    text, at = error.doc, error.pos
    where = f"not JSON at column {error.colno}: "
    if error.msg == "Extra data":
        fix = "put each row on a line of its own"
        if "\r" in text:
            return Fault(
                "row",
                "carriage_returns",
                f"{where}lines end in CR alone",
                "repair it, or end lines with LF",
            )
        return Fault(
            "row", "several_values", f"{where}something follows the end of the object", fix
        )
    if error.msg.startswith("Invalid control character"):
        fix = f"write {ESCAPE_FOR.get(text[at], f'{ord(text[at]):#06x}'.replace('0x', chr(92) + 'u'))}"
        return Fault("row", "control_character", f"{where}a control character inside a string", fix)
    if "Unterminated string" in error.msg:
        at = len(text)
    for fault in JSON_FAULTS:
        if fault.applies(text, at):
            return Fault("row", fault.code, where + fault.message, fault.fix)
    return Fault(
        "row", "not_json", where + error.msg, "write one complete JSON object on each line"
    )


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _shown(key: str) -> str:
    """A key as it can be printed."""
    text = key.encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."
