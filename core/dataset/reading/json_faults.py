"""Faults of lines that are no sound JSON objects: an exact look at what the parser refused.

Reads with `json`, as the training program does, and looks at every pair of key and value. Never
guesses what was meant.
"""

import codecs
import json
import re
from collections import Counter
from typing import Any, NamedTuple

import orjson

from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row

BYTE_ORDER_MARK = codecs.BOM_UTF8
MAX_NESTING = 32
"""Objects and arrays inside each other, the row itself included."""
TOO_DEEP = Fault(
    "row", "too_deep", f"is nested more than {MAX_NESTING} levels deep", "flatten the row"
)
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""String in JSON; one that is not closed ends with the line, so that no byte is searched twice."""
CLOSED_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
BRACKETS = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
ESCAPES = {"\t": "\\t", "\b": "\\b", "\f": "\\f"}
LONGEST_KEY_SHOWN = 60
COMPLETE_OBJECT = "write one complete JSON object on each line"


class JsonFault(NamedTuple):
    """One common mistake in JSON, recognised where the parser stopped."""

    code: str
    pattern: str
    """Regular expression that matches the rest of the line."""
    message: str
    fix: str


JSON_FAULTS = (
    JsonFault("quotes", "'", "single quotes", "put strings in double quotes"),
    JsonFault("comment", r"//|/\*|#", "a comment", "JSON has none: remove it"),
    JsonFault("python_literal", "None|True|False", "a Python literal", "write null, true or false"),
    JsonFault("truncated", r"\Z", "the line ends in the middle of a value", "complete or drop it"),
)


def explain_line(line: bytes, refusal: str = "") -> tuple[Row | None, Fault | None]:
    """Return (the row, what is wrong with its line); both None for a blank line.

    `refusal` is what the fast parser said, if it refused the line.
    """
    bare = line.removeprefix(BYTE_ORDER_MARK).strip()
    if not bare:
        return None, None
    if fault := _bytes_fault(line):
        return None, fault
    if _is_too_deep(bare):
        return None, TOO_DEEP
    pairs = _PairChecker()
    try:
        value = json.loads(bare.decode(), object_pairs_hook=pairs, parse_constant=_NotANumber)
    except json.JSONDecodeError as error:
        return None, _json_fault(error)
    except ValueError:  # more digits than Python turns into a number
        message = "holds a number that is too large"
        return None, Fault("row", "number_too_large", message, "write it as text")
    if not isinstance(value, dict):
        message = f"a row must be an object, not a {type(value).__name__}"
        return None, Fault("row", "not_object", message, 'write {"messages": [...]} or the like')
    if pairs.fault:
        return None, pairs.fault
    if refusal:
        return _parse_again(bare)
    return value, None


class _NotANumber(NamedTuple):
    """NaN, Infinity or -Infinity, until it is reported."""

    name: str


class _PairChecker:
    """Called with every object of a line while it is parsed; keeps the first fault."""

    def __init__(self) -> None:
        self.fault: Fault | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> Row:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((key, _times),) = Counter(key for key, _value in pairs).most_common(1)
            self._note(key, "duplicate_key", "is there more than once", "keep one of them")
        for key, value in pairs:
            for each in (key, value, *(value if isinstance(value, list) else ())):
                if isinstance(each, _NotANumber):
                    message = f"{each.name} is not a JSON number"
                    self._note(key, "nan", message, "use null or a number")
                elif isinstance(each, str) and not each.isascii() and _has_lone_surrogate(each):
                    message = "half of a surrogate pair"
                    self._note(key, "lone_surrogate", message, "write the whole character")
        return found

    def _note(self, key: str, code: str, message: str, fix: str) -> None:
        self.fault = self.fault or Fault(_printable(key), code, message, fix)


def _parse_again(bare: bytes) -> tuple[Row | None, Fault | None]:
    """Return what the fast parser makes of a line without the mark and spaces around it."""
    try:
        return orjson.loads(bare), None
    except orjson.JSONDecodeError as error:
        return None, Fault("row", "not_json", str(error), COMPLETE_OBJECT)


def _bytes_fault(line: bytes) -> Fault | None:
    nul = line.find(b"\0")
    if nul >= 0:
        fix = "the file is damaged or not text: write it again"
        return Fault("row", "nul", f"byte {nul + 1} is NUL", fix)
    try:
        line.decode()
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} is not UTF-8"
        return Fault("row", "not_utf8", message, "save the file as UTF-8")
    return None


def _is_too_deep(line: bytes) -> bool:
    """Return whether brackets outside of strings are nested too deep.

    Removes the innermost pairs level by level, since a recursive parser could be made to crash.
    """
    left = STRING.sub(b"", line).translate(BRACKETS, NO_BRACKETS)
    for _level in range(MAX_NESTING):
        if b"[]" not in left:
            break
        left = left.replace(b"[]", b"")
    return b"[]" in left or left.count(b"[") > MAX_NESTING


def _json_fault(error: json.JSONDecodeError) -> Fault:
    """Name the fault by the text around it, since Python changes the words of its errors."""
    text, at = error.doc, error.pos
    if bracket := _bracket_after_comma(text, at):
        message = f"not JSON at column {bracket + 1}: a comma before a closing bracket"
        return Fault("row", "trailing_comma", message, "remove the comma (a repair does it)")
    where = f"not JSON at column {error.colno}: "
    if _begins_with_a_value(text):
        if "\r" in text:
            message = f"{where}lines end in CR alone"
            return Fault("row", "carriage_returns", message, "repair it, or end lines with LF")
        message = f"{where}something follows the end of the object"
        return Fault("row", "several_values", message, "put each row on a line of its own")
    if at < len(text) and text[at] < " " and _ends_in_a_string(text[:at]):
        escape = ESCAPES.get(text[at], f"\\u{ord(text[at]):04x}")
        message = f"{where}a control character inside a string"
        return Fault("row", "control_character", message, f"write {escape}")
    if text[at : at + 1] == '"' and _ends_in_a_string(text[at:]):
        at = len(text)
    for fault in JSON_FAULTS:
        if re.match(fault.pattern, text[at:]):
            return Fault("row", fault.code, where + fault.message, fault.fix)
    return Fault("row", "not_json", where + error.msg, COMPLETE_OBJECT)


def _bracket_after_comma(text: str, at: int) -> int:
    """Return where a closing bracket follows a value and a comma, 0 if none does at a place.

    Python 3.13 stops at the comma, older ones at the bracket.
    """
    comma = text.rfind(",", 0, at + 1)
    bracket = len(text) - len(text[comma + 1 :].lstrip())
    follows_value = not text[: max(0, comma)].rstrip().endswith(("{", "[", ",", ":"))
    is_it = comma >= 0 and bracket >= at and text[bracket : bracket + 1] in ("}", "]")
    return bracket if is_it and follows_value else 0


def _begins_with_a_value(text: str) -> bool:
    """Return whether a text is refused only for what follows its first value."""
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError:
        return False
    return True


def _ends_in_a_string(text: str) -> bool:
    """Return whether a text that begins outside of strings ends inside of one."""
    strings = STRING.findall(text.encode())
    return bool(strings) and not CLOSED_STRING.fullmatch(strings[-1])


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _printable(key: str) -> str:
    text = key.encode(errors="backslashreplace").decode()
    if len(text) <= LONGEST_KEY_SHOWN:
        return text
    return text[: LONGEST_KEY_SHOWN - 3] + "..."
