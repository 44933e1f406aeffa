"""Layout of a dataset file: how its bytes hold rows. Found by its first bytes, rarely by more.

Most files hold one JSON object a line. Other layouts are read as if they did.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from core.dataset.reading.bare_values import Bare, as_row, bare_kind, is_plain_conversation
from core.dataset.reading.columns import blocks_of_columns
from core.dataset.reading.json_elements import JsonElements
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import (
    BLOCK_BYTES,
    MAX_LINE_BYTES,
    ByteSource,
    LineBlock,
    Readable,
    blocks_of_lines,
)
from core.dataset.reading.objects import LineJoiner, one_object_a_line, open_brackets
from core.dataset.reading.outline import Outline
from core.dataset.reading.plain_text import (
    SPLITS,
    TEXT_SUFFIXES,
    Split,
    is_json_string,
    looks_like_json,
    text_blocks,
    usual_split,
)
from core.dataset.reading.rows_inside import RowsInside, find_rows_inside
from core.training.contract.messages import Fault

SAMPLE_BYTES = 2**18
SAMPLE_LINES = 20
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
MAX_NAMED = 10
STRAY_TEXT = Fault(
    "file",
    "stray_text",
    "this is plain text, not JSON lines",
    "name it .txt to learn it as texts (stage cpt), .csv if it is a table, "
    "or write each row as a JSON object on its line",
)
THE_FILE = RowsInside()
REPAIRS_OF_KINDS: Mapping[str, str] = {
    "elements": "rows_inside",
    "columns": "rows_inside",
    "conversation": "bare_values",
}
Kind = Literal["lines", "elements", "objects", "columns", "conversation", "text"]


@dataclass(frozen=True)
class Layout:
    """Arrangement of rows in a file."""

    kind: Kind = "lines"
    """One row a line, elements of a list or an object, objects over several lines, an object of
    columns, one list of messages, or plain text."""
    inside: RowsInside = THE_FILE
    """Place of the elements; a path of no keys is the file itself."""
    bare: Bare = ""
    split: Split = "paragraphs"
    """Of a text."""
    fault: Fault | None = None
    """Reason why the file cannot be read at all."""

    @property
    def is_array(self) -> bool:
        return self.kind == "elements" and not self.inside.path and not self.inside.is_object

    @property
    def is_usual(self) -> bool:
        """True for one JSON object a line: the file is read as it is."""
        return self.kind == "lines" and not self.bare

    @property
    def repair(self) -> str:
        """Id of the repair that writes the rows as JSON lines; "" if they are."""
        if self.is_array:
            return "array"
        if self.kind == "lines":
            return "bare_values" if self.bare else ""
        return REPAIRS_OF_KINDS.get(self.kind, self.kind)

    def notes(self) -> Iterator[str]:
        """Yield what to say about it."""
        if self.kind == "elements":
            yield self._note_on_elements()
        if others := self.inside.others:
            named = ", ".join(others[:MAX_NAMED])
            yield f"What the file holds beside these rows is not read: {named}."
        if self.kind == "objects":
            yield "The JSON objects are over several lines: each counts as the line it begins on."
        if self.kind == "columns":
            yield "The file is one object of columns: rows are made of them, and counted as lines."
        if self.kind == "conversation":
            yield "The file is one list of messages, which is read as one conversation."
        if self.kind == "text":
            yield f"The file is plain text, {SPLITS[self.split]}: each part is one text to learn."
        if self.bare == "texts":
            yield "Each row is a JSON string: it is read as a text."
        if self.bare == "conversations" and self.kind != "conversation":
            yield "Each row is a list of messages: it is read as a conversation."

    def _note_on_elements(self) -> str:
        inside = self.inside
        if self.is_array:
            return "The file is one JSON array: its elements are the rows, and counted as lines."
        what = "values" if inside.is_object else "elements"
        names = [name for name in inside.path if name is not None]
        where = "one object"
        if names:
            where = f"{'.'.join(names)!r} in the file's object"
        if None in inside.path:
            where = f"every list in {where}"
        return f"The rows are the {what} of {where}, and counted as lines."


USUAL = Layout()
Rewind = Callable[[], Readable]
"""Return the file from its beginning."""


class RowBlocks:
    """Rows of a file, block by block, each as a line of JSON."""

    def __init__(self, source: ByteSource, layout: Layout) -> None:
        self._source, self._layout = source, layout
        inside = layout.inside
        self._elements = JsonElements(source, inside.path, is_object=inside.is_object)

    @property
    def is_whole(self) -> bool:
        """True unless the file is one array that is not closed, or is followed by something."""
        return self._layout.kind != "elements" or self._elements.is_whole

    def __iter__(self) -> Iterator[LineBlock]:
        for block in self._blocks():
            yield _with_objects(block) if self._layout.bare else block

    def _blocks(self) -> Iterator[LineBlock]:
        kind = self._layout.kind
        if kind == "elements":
            return self._elements.blocks()
        if kind == "text":
            return text_blocks(self._source, self._layout.split)
        if kind == "objects":
            return _blocks_of_objects(self._source)
        if kind == "columns":
            return blocks_of_columns(self._source)
        if kind == "conversation":
            return _block_of_all(self._source)
        return blocks_of_lines(self._source)


def detect_layout(rewind: Rewind, suffix: str) -> Layout:
    """Return the layout of a file. `suffix` is the end of its name, such as .txt."""
    sample, is_all = _first_bytes(rewind())
    lines = [line for line in sample.split(b"\n") if line.strip()]
    if not lines:
        return USUAL
    begin = sample.lstrip()
    if begin.startswith(b"{") and (suffix in JSON_SUFFIXES or looks_like_json(begin)):
        return _layout_of_object(rewind, lines)
    if begin.startswith(b"[") and (looks_like_json(begin) or _is_list_of_values(sample, suffix)):
        return _layout_of_array(sample, lines)
    whole_lines = lines if is_all or len(lines) == 1 else lines[:-1]
    if all(map(is_json_string, whole_lines)):
        return Layout(bare="texts")
    if suffix in TEXT_SUFFIXES:
        return Layout("text", split=usual_split(sample, is_all=is_all))
    if any(map(_is_json, whole_lines)) or not _is_utf8(whole_lines):
        return USUAL
    return Layout(fault=STRAY_TEXT)


def _first_bytes(file: Readable) -> tuple[bytes, bool]:
    """Return (the first bytes without a mark, whether these are all)."""
    sample = file.read(SAMPLE_BYTES)
    return sample.removeprefix(BYTE_ORDER_MARK), not file.read(1)


def _layout_of_array(sample: bytes, lines: Sequence[bytes]) -> Layout:
    """Return the layout of a file that begins with [."""
    if len(lines) > 1 and lines[1].lstrip().startswith(b"[") and _is_list(lines[0]):
        return Layout(bare=bare_kind([_parsed(lines[0])]))
    values = _first_elements(sample)
    if is_plain_conversation(values):
        return Layout("conversation", bare="conversations")
    return Layout("elements", bare=bare_kind(values))


def _layout_of_object(rewind: Rewind, sample: Sequence[bytes]) -> Layout:
    """Return the layout of a file that begins with {."""
    lines = _first_lines(rewind(), 2)
    is_one_line = lines[0] is None or isinstance(_parsed(lines[0]), dict)
    if is_one_line and len(lines) > 1:
        return USUAL
    if any(map(_is_row_at_margin, sample[1:SAMPLE_LINES])):
        return USUAL  # the first of many rows is broken
    outline = Outline(ByteSource(rewind()))
    found = None
    if isinstance(outline.value, dict) and not outline.has_more:
        found = find_rows_inside(outline.value)
    if found is None:
        if is_one_line or not open_brackets(lines[0] or b""):
            return USUAL
        is_sound = outline.value is not None or _begins_with_object(sample)
        return Layout("objects") if is_sound else USUAL
    if found.are_columns:
        return Layout("columns")
    if found.choices:
        return Layout(fault=_several_lists(found.choices))
    return Layout("elements", found, found.bare)


def _several_lists(names: Sequence[str]) -> Fault:
    lists = ", ".join(names[:MAX_NAMED])
    message = f"the rows may be in any of its lists: {lists}"
    return Fault("file", "rows_inside", message, "keep one of them, as one array or as JSON lines")


def _first_lines(file: Readable, number: int) -> list[bytes | None]:
    """Return the first lines that are not blank; one that is too long is None."""
    found: list[bytes | None] = []
    for block in blocks_of_lines(ByteSource(file)):
        for line in block.lines:
            if line is None or line.removeprefix(BYTE_ORDER_MARK).strip():
                found.append(line and line.removeprefix(BYTE_ORDER_MARK).strip())
            if len(found) == number:
                return found
    return found


def _first_elements(sample: bytes) -> list[Any]:
    """Return the first elements of an array that can be parsed."""
    values = []
    for block in JsonElements(ByteSource(io.BytesIO(sample))).blocks():
        for line in block.lines[:SAMPLE_LINES]:
            value = _parsed(line or b"")
            if value is not None:
                values.append(value)
    return values[:SAMPLE_LINES]


def _begins_with_object(lines: Sequence[bytes]) -> bool:
    """Return whether the first lines are one object, if commas before brackets are forgiven."""
    joiner = LineJoiner()
    next(joiner.lines(enumerate(lines)))
    return joiner.num_objects > 0


def _with_objects(block: LineBlock) -> LineBlock:
    """Return a block whose texts and conversations are objects."""
    lines = [line and as_row(line) for line in block.lines]
    return LineBlock(block.numbers, lines, b"\n".join(line or b"" for line in lines))


def _blocks_of_objects(source: ByteSource) -> Iterator[LineBlock]:
    """Yield objects that are spread over lines, each as one line."""
    rows: list[tuple[int, bytes | None]] = []
    num_bytes = 0
    for number, line in one_object_a_line(_numbered_lines(source), LineJoiner()):
        rows.append((number, line))
        num_bytes += len(line or b"")
        if num_bytes > BLOCK_BYTES:
            yield _block(rows)
            rows, num_bytes = [], 0
    if rows:
        yield _block(rows)


def _block(rows: Sequence[tuple[int, bytes | None]]) -> LineBlock:
    numbers, lines = zip(*rows, strict=True)
    return LineBlock(numbers, lines, b"\n".join(line or b"" for line in lines))


def _numbered_lines(source: ByteSource) -> Iterator[tuple[int, bytes | None]]:
    for block in blocks_of_lines(source):
        yield from zip(block.numbers, block.lines, strict=True)


def _block_of_all(source: ByteSource) -> Iterator[LineBlock]:
    """Yield a whole file as one line."""
    text = b""
    while data := source.read():
        if len(text) <= MAX_LINE_BYTES:
            text += data
    line = None if len(text) > MAX_LINE_BYTES else text.strip().replace(b"\n", b" ")
    yield LineBlock((1,), (line,), line or b"")


def _is_row_at_margin(line: bytes) -> bool:
    """Return whether a line begins with { and is a whole object."""
    return line.startswith(b"{") and isinstance(_parsed(line), dict) and line.strip() != b"{}"


def _is_list_of_values(sample: bytes, suffix: str) -> bool:
    """Return whether a file is one list of numbers or the like."""
    return suffix in JSON_SUFFIXES and bool(_first_elements(sample))


def _is_list(line: bytes) -> bool:
    return isinstance(_parsed(line), list)


def _is_json(line: bytes) -> bool:
    return looks_like_json(line) or _parsed(line) is not None


def _is_utf8(lines: Sequence[bytes]) -> bool:
    try:
        b"\n".join(lines).decode()
    except UnicodeDecodeError:
        return False
    return True


def _parsed(line: bytes) -> Any:
    """Return a JSON value, None if it is none."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
