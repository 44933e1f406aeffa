"""Rows as a model will see them, and how long they are: asks a child process that holds the tokenizer.

The child is started when it is first needed, stays, and is replaced when it died or took too long. Chat templates are
programs that come with models: they run in the child and nowhere else.
"""

import base64
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from core.dataset import Lengths, RowLengths, as_lines
from core.device.child import Child, Limits
from core.job import ChildError, DatasetError, PreviewError, Problem

__all__ = ["About", "Lengths", "Matches", "Preview", "ShownRow", "ShownText"]

MODULE = "core.workers.preview"
MEMORY_BYTES = 4 * 2**30
SECONDS_TO_LOAD = 300
"""A file of many gigabytes is read through once."""
SECONDS_TO_ANSWER = 10
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_INTERRUPTS = 0.05
MOST_KEPT = 100
"""Files of lengths in a cache; the oldest go."""
ALARM = "signal 14"


@dataclass(frozen=True)
class ShownText:
    """One text as the model will see it."""

    pieces: tuple[tuple[str, bool], ...] = ()
    """(text, counts for the loss), in order; special tokens are written out."""
    cut: str = ""
    """What max_length cuts off."""
    num_tokens: int = 0
    num_counted: int = 0
    """Tokens that count for the loss, after the cut."""


@dataclass(frozen=True)
class ShownRow(ShownText):
    """One row as the model will see it; of a preference the chosen answer with its prompt."""

    index: int = 0
    """0-based among the rows."""
    line: int = 1
    """1-based in the file."""
    rejected: ShownText | None = None
    """The other text of a preference."""
    label: bool | None = None
    """Whether the answer is wanted, of an unpaired preference."""
    error: str = ""
    """Why there is nothing to show."""


@dataclass(frozen=True)
class About:
    """What is known of a file and a tokenizer before any row is looked at."""

    rows: int
    template: Literal["none", "model", "default", "marked"]
    """The chat template: none for plain text, the model's own, ours, or TRL's form of it that marks the answers."""
    notes: tuple[str, ...]
    """Sentences that a person should know."""
    is_drawn: bool
    """True if the model draws the answers itself, so that a row is a prompt only."""
    key: str
    """The same for the same rows, tokenizer, template and stage."""


@dataclass(frozen=True)
class Matches:
    """Rows that hold a text."""

    rows: tuple[tuple[int, int], ...]
    """(0-based index, 1-based line)."""
    is_complete: bool
    """False if there may be more."""


@dataclass
class Preview:
    """One dataset file, seen through one model's tokenizer. May be asked from several threads."""

    dataset: Path
    """A JSONL file, or one JSON array, whose elements count as lines."""
    model: str
    """A folder or a Hub id."""
    revision: str = "main"
    assistant_only_loss: bool = True
    seconds_for_a_row: float = 8
    """What a chat template may take for one row; one that takes longer ends the child."""
    stage: str = "sft"
    cache: Path | None = None
    """A folder for the lengths of files that were measured to their end."""
    write_rows: Callable[[Path], Path] | None = None
    """Writes what is to be seen instead into a folder, and returns its file: of a dataset, some rows or more than its.
    """
    _child: Child | None = field(default=None, repr=False)
    _about: About | None = field(default=None, repr=False)
    _lengths: RowLengths | None = field(default=None, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _folder: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)
    """For lines that were written to be seen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def about(self) -> About:
        """What is known of the file and the tokenizer. Raises PreviewError."""
        with self._lock:
            if self._about is None:
                self._start()
            assert self._about
            return self._about

    def rows(self, first: int, num_rows: int, max_length: int) -> tuple[ShownRow, ...]:
        """Rows from the 0-based `first` on; fewer at the end. Raises PreviewError."""
        return tuple(
            map(_shown_row, self._ask("rows", first=first, count=num_rows, max_length=max_length))
        )

    def index_of(self, line: int) -> int:
        """The index of the row on a 1-based line, or of the next one after it, or of the last. Raises PreviewError."""
        return int(self._ask("index", line=line))

    def find(self, text: str, first: int = 0) -> int | None:
        """The index of the first row from `first` on, round the end, that holds a text. Raises PreviewError."""
        for begin in (first, 0):
            if found := self.search(text, begin, most=1).rows:
                return found[0][0]
        return None

    def search(
        self,
        text: str,
        first: int = 0,
        most: int = 100,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Matches:
        """The rows from `first` on that hold a text in whatever case, at most so many. Raises PreviewError."""
        found: list[tuple[int, int]] = []
        begin, rows = first, self.about().rows
        while begin < rows and len(found) < most and not is_cancelled():
            answer = self._ask("search", text=text, first=begin, most=most - len(found))
            found += map(tuple, answer["found"])
            begin = answer["next"]
        return Matches(tuple(found), begin >= rows)

    def measured(self) -> RowLengths:
        """The lengths of the rows measured by now, at once; more are measured meanwhile. Raises PreviewError."""
        with self._lock:
            about = self.about()
            if self._lengths is None:
                self._lengths = self._kept(about) or RowLengths(about.rows, about.is_drawn)
            has_more = not self._lengths.is_complete
            while has_more:
                answer = self._ask("lengths", first=self._lengths.readable)
                first = answer["first_unreadable"]
                self._lengths.extend(
                    base64.b64decode(answer["numbers"]),
                    answer["unreadable_rows"],
                    tuple(first) if first else None,
                )
                has_more = answer["has_more"]
                if self._lengths.is_complete:
                    self._keep(about)
            return self._lengths

    def lengths(self, max_length: int) -> Lengths:
        """What a maximum length does to the rows measured by now. Raises PreviewError."""
        with self._lock:
            return self.measured().at(max_length)

    def all_lengths(
        self,
        max_length: int,
        on_progress: Callable[[Lengths], None] = lambda _lengths: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Lengths:
        """The lengths of every row once all are measured, or, called off, of those by then. Raises PreviewError."""
        while not (found := self.lengths(max_length)).is_complete:
            on_progress(found)
            if is_cancelled():
                self._ask("rest")
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return found

    def close(self) -> None:
        """Ends the child; the next question starts another."""
        while not self._lock.acquire(timeout=SECONDS_BETWEEN_INTERRUPTS):
            if child := self._child:
                child.interrupt()  # whoever holds the lock waits for its answer
        try:
            if self._child:
                self._child.kill()
            if self._folder:
                self._folder.cleanup()
            self._child = self._folder = None
        finally:
            self._lock.release()

    def _start(self) -> None:
        lines = self._lines()
        self._child = Child(MODULE, Limits(MEMORY_BYTES), reads_hub=True)
        fields = ("model", "revision", "assistant_only_loss", "seconds_for_a_row", "stage")
        job = {name: getattr(self, name) for name in fields}
        found = self._exchange("load", SECONDS_TO_LOAD, dataset=str(lines.absolute()), **job)
        about = About(**found | {"notes": tuple(found["notes"])})
        if about != self._about or (self._lengths and not self._lengths.is_complete):
            self._lengths = None  # another child measures in its own time, from the beginning
        self._about = about

    def _lines(self) -> Path:
        """The file as the child reads it. Raises PreviewError."""
        self._folder = tempfile.TemporaryDirectory(prefix="tailor-rows-")
        folder = Path(self._folder.name)
        try:
            return (
                self.write_rows(folder)
                if self.write_rows
                else as_lines(self.dataset, folder / "rows.jsonl")
            )
        except DatasetError as error:
            self.close()
            raise _cannot_show(error.reason) from None
        except OSError:
            self.close()
            raise

    def _ask(self, what: str, **details: Any) -> Any:
        with self._lock:
            if self._child is None:
                self._start()
            return self._exchange(what, SECONDS_TO_ANSWER, **details)

    def _exchange(self, what: str, seconds: float, **details: Any) -> Any:
        """Return the answer to one request. Raises PreviewError and ends a child that gives none."""
        assert self._child
        try:
            return self._child.ask({"do": what} | details, seconds)
        except ChildError as error:
            if error.cause != "refused" or what == "load":
                self.close()
            raise _cannot_show(_why_not(error)) from None

    def _kept(self, about: About) -> RowLengths | None:
        """The lengths that were measured on another day."""
        with suppress(OSError, ValueError):
            if self.cache:
                return RowLengths.read(self.cache / f"{about.key}.npy", about.rows, about.is_drawn)
        return None

    def _keep(self, about: About) -> None:
        """Keeps complete lengths, unless rows could not be read: why is told by who reads them. A disk that will not
        take them is no reason to fail."""
        if self.cache and self._lengths and not self._lengths.unreadable_rows:
            with suppress(OSError):
                self.cache.mkdir(parents=True, exist_ok=True)
                kept = sorted(self.cache.glob("*.npy"), key=lambda path: path.stat().st_mtime)
                for oldest in kept[: max(0, len(kept) - MOST_KEPT + 1)]:
                    oldest.unlink()
                self._lengths.write(self.cache / f"{about.key}.npy")


def _cannot_show(why: str) -> PreviewError:
    fix = "check the file, or choose a model with a tokenizer"
    return PreviewError(Problem("rows", f"cannot be shown: {why.rstrip('.')}", fix))


def _why_not(error: ChildError) -> str:
    if os.name == "posix" and ALARM in error.reason:
        return "the chat template took too long over a row"
    if error.cause == "died":
        return f"the preview stopped: {error.reason}"
    return error.reason


def _shown_row(found: dict[str, Any]) -> ShownRow:
    rejected = found.get("rejected")
    other = ShownText(**rejected | {"pieces": _pairs(rejected["pieces"])}) if rejected else None
    return ShownRow(**found | {"pieces": _pairs(found.get("pieces", ())), "rejected": other})


def _pairs(pieces: Any) -> tuple[tuple[str, bool], ...]:
    return tuple((text, counts) for text, counts in pieces)
