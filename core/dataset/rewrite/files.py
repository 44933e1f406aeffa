"""How a dataset is written again: read line by line, a new file that appears whole or not at all. Changes no text."""

import codecs
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.dataset.check.diagnosis import BYTE_ORDER_MARK, TOO_LONG
from core.dataset.check.json_array import NOT_AN_ARRAY, Elements, is_array
from core.dataset.check.lines import Readable, Source, blocks_of_lines
from core.dataset.check.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.report import RowProblem, file_problem
from core.job import DatasetError


@dataclass(frozen=True)
class Written:
    """A new file, and what makes it different from the old one."""

    path: Path
    rows: int
    actions: tuple[str, ...]
    """Sentences; none if nothing was different."""


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
            problem = file_problem(
                "wide_encoding", f"is no sound {self._encoding.upper()}", "save it as UTF-8"
            )
            raise DatasetError(problem.for_user()) from None


@contextmanager
def reading(
    path: Path, repairs: Collection[str] = ("array",), counts: dict[str, int] | None = None
) -> Iterator[Iterator[tuple[int, bytes]]]:
    """(number, line) of every line, with the repairs that concern the whole file done and added to their counts.

    Raises DatasetError if it is not text, OSError.
    """
    done = counts if counts is not None else dict.fromkeys(repairs, 0)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if foreign := foreign_signature(head):
            raise DatasetError(
                file_problem(
                    "not_text", f"this is {foreign.name}, not JSON lines", foreign.fix
                ).for_user()
            )
        readable: Readable = file
        if (encoding := wide_encoding(head)) and "encoding" in repairs:
            done["encoding"] = 1
            readable = Recoded(file, encoding)
            head = Recoded(file, encoding).read(HEAD_BYTES)
            file.seek(0)
        yield _lines(Source(readable), head, repairs, done)


def _lines(
    source: Source, head: bytes, repairs: Collection[str], counts: dict[str, int]
) -> Iterator[tuple[int, bytes]]:
    elements = Elements(source) if is_array(head) and "array" in repairs else None
    for block in elements.blocks() if elements else blocks_of_lines(source):
        for number, line in zip(block.numbers, block.lines, strict=True):
            if line is None:
                raise DatasetError(RowProblem(number, *TOO_LONG).for_user())
            if "byte_order_mark" in repairs and line.startswith(BYTE_ORDER_MARK):
                counts["byte_order_mark"] += 1
                line = line.removeprefix(BYTE_ORDER_MARK)
            if elements:
                counts["array"] += 1
            yield number, line
    if elements and not elements.is_whole:
        raise DatasetError(RowProblem(1, *NOT_AN_ARRAY).for_user())


@contextmanager
def writing(target: Path) -> Iterator[BinaryIO]:
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
