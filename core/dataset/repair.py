"""Changes to a dataset that a person asked for. Each writes a new file and says what it did; none touches the old one.

Texts stay as they are, byte for byte: a repair removes what stands between rows and around values, never inside them.
"""

import codecs
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from core.dataset.check import examine
from core.dataset.diagnosis import BYTE_ORDER_MARK, STRING, TOO_LONG
from core.dataset.elements import NOT_AN_ARRAY, Elements, is_array
from core.dataset.lines import Readable, Source, blocks_of_lines, parse
from core.dataset.report import RowProblem, file_problem
from core.dataset.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.walk import Wish

LISTED_LINES = 10
COMMA_BEFORE_BRACKET = re.compile(STRING.pattern + rb"|,(?=\s*[}\]])", re.DOTALL)

REPAIRS: Mapping[str, str] = MappingProxyType(
    {
        "encoding": "write UTF-16 and UTF-32 as UTF-8",
        "byte_order_mark": "remove the byte order mark",
        "array": "put each element of the array on a line of its own",
        "line_ends": "end lines with LF instead of CR LF or CR",
        "trailing_commas": "remove commas before a closing bracket",
    }
)
"""Repair -> what it does."""


class DatasetError(Exception):
    """A file that cannot be changed as asked; `problem` says why and what to do."""

    def __init__(self, problem: RowProblem):
        self.problem = problem
        super().__init__(str(problem))


@dataclass(frozen=True)
class Written:
    """A new file, and what makes it different from the old one."""

    path: Path
    rows: int
    actions: tuple[str, ...]
    """Sentences; none if nothing was different."""


def repair(path: Path, target: Path, repairs: Collection[str] = REPAIRS.keys()) -> Written:
    """Writes a file again with these repairs where they apply.

    Raises DatasetError if it is not text or not in the encoding it seems to be in, OSError for a disk that will not.
    """
    counts = dict.fromkeys(REPAIRS, 0)
    with _reading(path, repairs, counts) as source, _writing(target) as out:
        rows = 0
        for _number, line in source:
            for part in _without_returns(line, counts) if "line_ends" in repairs else (line,):
                fixed = _without_commas(part, counts) if "trailing_commas" in repairs else part
                out.write(fixed + b"\n")
                rows += bool(fixed.strip())
    return Written(target, rows, tuple(SENTENCES[name].format(counts[name]) for name in REPAIRS if counts[name]))


def write_lines(path: Path, target: Path) -> Written:
    """Writes a file as the trainer reads it: JSON lines as they are, an array as one line for each element."""
    return repair(path, target, ("array",))


def drop_rows(path: Path, target: Path, lines: Iterable[int]) -> Written:
    """Writes a file again without these lines (1-based). Raises DatasetError, OSError."""
    dropped, kept = sorted(set(lines)), 0
    waiting = iter(dropped)
    next_dropped = next(waiting, 0)
    with _reading(path, ("array",), dict.fromkeys(REPAIRS, 0)) as source, _writing(target) as out:
        for number, line in source:
            if number == next_dropped:
                next_dropped = next(waiting, 0)
            else:
                out.write(line + b"\n")
                kept += bool(line.strip())
    return Written(target, kept, (_dropped_sentence(dropped),) if dropped else ())


def drop_bad_rows(path: Path, target: Path, wish: Wish | None = None) -> Written:
    """Writes a file again without the rows that have problems."""
    return drop_rows(path, target, examine(path, wish or Wish()).bad_lines)


def drop_duplicates(path: Path, target: Path, wish: Wish | None = None) -> Written:
    """Writes a file again without the rows that repeat an earlier one."""
    return drop_rows(path, target, examine(path, wish or Wish()).duplicate_lines)


def rename_columns(path: Path, target: Path, columns: Mapping[str, str]) -> Written:
    """Writes only these columns of each row, under the names that they are mapped to. Lines without rows stay away."""
    rows = 0
    with _reading(path, ("array",), dict.fromkeys(REPAIRS, 0)) as source, _writing(target) as out:
        for _number, line in source:
            if parse(line)[0] is not None:
                row = json.loads(line.removeprefix(BYTE_ORDER_MARK))
                renamed = {ours: row[theirs] for theirs, ours in columns.items() if theirs in row}
                out.write(json.dumps(renamed, ensure_ascii=False).encode() + b"\n")
                rows += 1
    names = ", ".join(f"{theirs} became {ours}" for theirs, ours in columns.items())
    return Written(target, rows, (f"Columns: {names}; all others were left out.",))


SENTENCES: Mapping[str, str] = {
    "encoding": "Written as UTF-8.",
    "byte_order_mark": "The byte order mark was removed.",
    "array": "{:,} elements of the array became lines.",
    "line_ends": "{:,} carriage returns at the ends of lines were removed.",
    "trailing_commas": "{:,} commas before closing brackets were removed.",
}


class Recoded:
    """Text in wide units, read as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str):
        self._file, self._encoding = file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def read(self, size: int, /) -> bytes:
        """The next bytes; empty at the end. Raises DatasetError."""
        try:
            while data := self._file.read(size):
                if text := self._decoder.decode(data):
                    return text.encode()
            return self._decoder.decode(b"", final=True).encode()
        except UnicodeError:
            problem = file_problem("wide_encoding", f"is no sound {self._encoding.upper()}", "save it as UTF-8")
            raise DatasetError(problem) from None


@contextmanager
def _reading(path: Path, repairs: Collection[str], counts: dict[str, int]) -> Iterator[Iterator[tuple[int, bytes]]]:
    """(number, line) of every line, with the repairs that concern the whole file done and counted."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if foreign := foreign_signature(head):
            raise DatasetError(file_problem("not_text", f"this is {foreign.name}, not JSON lines", foreign.fix))
        readable: Readable = file
        if (encoding := wide_encoding(head)) and "encoding" in repairs:
            counts["encoding"] = 1
            readable = Recoded(file, encoding)
            head = Recoded(file, encoding).read(HEAD_BYTES)
            file.seek(0)
        yield _lines(Source(readable), head, repairs, counts)


def _lines(
    source: Source, head: bytes, repairs: Collection[str], counts: dict[str, int]
) -> Iterator[tuple[int, bytes]]:
    elements = Elements(source) if is_array(head) and "array" in repairs else None
    for block in elements.blocks() if elements else blocks_of_lines(source):
        for number, line in zip(block.numbers, block.lines, strict=True):
            if line is None:
                raise DatasetError(RowProblem(number, *TOO_LONG))
            if "byte_order_mark" in repairs and line.startswith(BYTE_ORDER_MARK):
                counts["byte_order_mark"] += 1
                line = line.removeprefix(BYTE_ORDER_MARK)
            counts["array"] += elements is not None
            yield number, line
    if elements and not elements.is_whole:
        raise DatasetError(RowProblem(1, *NOT_AN_ARRAY))


@contextmanager
def _writing(target: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name once it is complete. Raises FileExistsError rather than replacing one."""
    if target.exists():
        raise FileExistsError(17, "already exists", str(target))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)


def _without_returns(line: bytes, counts: dict[str, int]) -> tuple[bytes, ...]:
    """The line without the CR at its end, or the lines that lone CRs separate."""
    if b"\r" not in line:
        return (line,)
    counts["line_ends"] += line.count(b"\r")
    return tuple(line.removesuffix(b"\r").split(b"\r"))


def _without_commas(line: bytes, counts: dict[str, int]) -> bytes:
    """The line with the commas that must not be there gone, if that makes it a row."""
    _row, fault = parse(line)
    if fault is None or fault.code != "trailing_comma":
        return line
    fixed = COMMA_BEFORE_BRACKET.sub(lambda found: b"" if found.group() == b"," else found.group(), line)
    if parse(fixed)[1] is not None:
        return line
    counts["trailing_commas"] += 1
    return fixed


def _dropped_sentence(lines: list[int]) -> str:
    shown = ", ".join(f"{line:,}" for line in lines[:LISTED_LINES])
    more = f" and {len(lines) - LISTED_LINES:,} more" if len(lines) > LISTED_LINES else ""
    return f"{len(lines):,} row{'s' * (len(lines) != 1)} left out: line{'s' * (len(lines) != 1)} {shown}{more}."
