"""Rows as a model will see them, and how long they are: asks a child that holds the tokenizer.

The child starts when it is first needed, stays, and is replaced if it died or took too long. Chat
templates are programs that come with models: they run in the child and nowhere else.
"""

import base64
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from core.dataset.rewrite import in_child
from core.dataset.token_lengths import Lengths, LostField, RowLengths, sorted_lost
from core.device.child import Child, Limits
from core.job import ChildError, DatasetError, JobSpec, PreviewError, Problem

MODULE = "core.workers.preview"
MEMORY_BYTES = 4 * 2**30
SECONDS_TO_LOAD = 300
"""A file of many gigabytes is read once."""
SECONDS_TO_ANSWER = 10
SECONDS_BETWEEN_CHECKS = 0.1
SECONDS_BETWEEN_INTERRUPTS = 0.05
MAX_CACHED_FILES = 100
ALARM = "signal 14"
"""Part of the reason that a child gives which a chat template kept busy for too long."""


@dataclass(frozen=True)
class ShownText:
    """One text as the model will see it."""

    pieces: tuple[tuple[str, bool], ...] = ()
    """(text, whether it counts for the loss), in order; special tokens are written out."""
    cut: str = ""
    """Text that max_length cuts off."""
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
    """Other text of a preference."""
    label: bool | None = None
    """Whether the answer is wanted, of an unpaired preference."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Row as the trainer reads it, in TRL's columns; empty if it cannot be read."""
    lost: tuple[str, ...] = ()
    """What the row holds and the chat template does not print, such as `tools`."""
    error: str = ""
    """Reason why there is nothing to show."""

    def to_json(self) -> dict[str, object]:
        """Return the row as `preview --json` prints it."""
        printed: dict[str, object] = {"line": self.line, "row": self.row, "pieces": self.pieces}
        if self.cut:
            printed["cut"] = self.cut
        if self.rejected:
            printed["rejected"] = self.rejected.pieces
        if self.error:
            printed["error"] = self.error
        return printed


def lost_in_template(rows: Iterable[ShownRow]) -> tuple[LostField, ...]:
    """Return what these rows hold and the chat template does not print, the most frequent first."""
    lines: dict[str, list[int]] = {}
    for row in rows:
        for name in row.lost:
            lines.setdefault(name, []).append(row.line)
    return sorted_lost(LostField(name, len(each), each[0]) for name, each in lines.items())


@dataclass(frozen=True)
class PreviewInfo:
    """Facts about a file and a tokenizer, known before any row is looked at."""

    rows: int
    template: Literal["none", "model", "default", "marked"]
    """Chat template: none for plain text, the model's own, Tailor's, or TRL's form of the model's
    own that marks the answers."""
    notes: tuple[str, ...]
    """Sentences for the user."""
    generates: bool
    """True if the model generates the answers, so that a row is a prompt only."""
    key: str
    """The same for the same rows, tokenizer, template and stage."""


@dataclass
class Preview:
    """One dataset file, seen through one model's tokenizer. Several threads may ask it."""

    dataset: Path
    """JSONL file, or one JSON array, whose elements count as lines."""
    model: str
    """Folder or Hub id."""
    revision: str = "main"
    assistant_only_loss: bool = True
    use_chat_template: bool = True
    seconds_for_a_row: float = 8
    """Time of a chat template for one row; one that takes longer ends the child."""
    stage: str = "sft"
    cache: Path | None = None
    """Folder for the lengths of files that were measured to their end."""
    write_rows: Callable[[Path], Path] | None = None
    """Write other rows into a folder and return their file, which is shown instead of `dataset`."""
    _child: Child | None = field(default=None, repr=False)
    _info: PreviewInfo | None = field(default=None, repr=False)
    _lengths: RowLengths | None = field(default=None, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _folder: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)
    """For rows that were written to be shown."""

    @classmethod
    def for_job(
        cls,
        job: JobSpec,
        dataset: Path,
        model: str,
        *,
        cache: Path | None = None,
        write_rows: Callable[[Path], Path] | None = None,
    ) -> Self:
        """Return a preview of a file as a job with a model in a folder or on the Hub reads it."""
        return cls(
            dataset,
            model,
            job.revision,
            job.assistant_only_loss,
            job.use_chat_template,
            stage=job.stage,
            cache=cache,
            write_rows=write_rows,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def info(self) -> PreviewInfo:
        """Return what is known of the file and the tokenizer. Raises PreviewError."""
        with self._lock:
            if self._info is None:
                self._start()
            assert self._info
            return self._info

    def rows(self, first: int, num_rows: int, max_length: int) -> tuple[ShownRow, ...]:
        """Return rows from the 0-based `first` on; fewer at the end. Raises PreviewError."""
        rows = self._ask("rows", first=first, count=num_rows, max_length=max_length)
        return tuple(map(_shown_row, rows))

    def rows_from_line(self, line: int, num_rows: int, max_length: int) -> tuple[ShownRow, ...]:
        """Return rows from a 1-based line on, or from the row after it. Raises PreviewError."""
        return self.rows(self.index_of(line), num_rows, max_length)

    def index_of(self, line: int) -> int:
        """Return the index of the row on a 1-based line, or of the next one after it.

        Beyond the last row it is the last. Raises PreviewError.
        """
        return int(self._ask("index", line=line))

    def find(self, text: str, first: int = 0) -> int | None:
        """Return the index of the first row from `first` on, or else from the start, with a text.

        Upper and lower case are alike. Raises PreviewError.
        """
        num_rows = self.info().rows
        for begin in (first, 0):
            while begin < num_rows:  # each answer searches for a second at most
                found, begin = self._ask("find", text=text, first=begin)
                if found is not None:
                    return int(found)
        return None

    def measured(self) -> RowLengths:
        """Return the lengths of the rows measured so far, at once, and have more rows measured.

        Raises PreviewError.
        """
        with self._lock:
            lengths = self._known_lengths()
            has_more = not lengths.is_complete
            while has_more:
                if self._child is None:  # it has died; a new one measures from the beginning
                    self._start()
                    lengths = self._known_lengths()
                answer = self._ask("lengths", first=lengths.readable)
                first = answer["first_unreadable"]
                lengths.extend(
                    base64.b64decode(answer["numbers"]),
                    answer["unreadable_rows"],
                    tuple(first) if first else None,
                )
                lengths.lost = sorted_lost(LostField(*each) for each in answer["lost"])
                has_more = answer["has_more"]
                if lengths.is_complete:
                    self._write_cache(self.info())
            return lengths

    def _known_lengths(self) -> RowLengths:
        """Return the lengths known so far: measured, from the cache, or none yet."""
        info = self.info()
        if self._lengths is None:
            self._lengths = self._read_cache(info) or RowLengths(info.rows, info.generates)
        return self._lengths

    def all_lengths(
        self, max_length: int, *, is_cancelled: Callable[[], bool] | None = None
    ) -> Lengths:
        """Return the lengths of all rows once they are measured. Raises PreviewError.

        If it is cancelled, the lengths are those of the rows measured by then.
        """
        while not (lengths := self.measured()).is_complete:
            if is_cancelled and is_cancelled():
                self._ask("rest")
                break
            time.sleep(SECONDS_BETWEEN_CHECKS)
        return lengths.at(max_length)

    def close(self) -> None:
        """End the child; the next request starts another."""
        while not self._lock.acquire(timeout=SECONDS_BETWEEN_INTERRUPTS):
            if child := self._child:
                child.interrupt()  # the thread that holds the lock waits for its answer
        try:
            if self._child:
                self._child.kill()
            if self._folder:
                self._folder.cleanup()
            self._child = self._folder = None
        finally:
            self._lock.release()

    def _start(self) -> None:
        file = self._write_file()
        self._child = Child(MODULE, Limits(MEMORY_BYTES), reads_hub=True)
        fields = (
            "model",
            "revision",
            "assistant_only_loss",
            "use_chat_template",
            "seconds_for_a_row",
            "stage",
        )
        job = {name: getattr(self, name) for name in fields}
        answer = self._exchange("load", SECONDS_TO_LOAD, dataset=str(file.absolute()), **job)
        info = PreviewInfo(**answer | {"notes": tuple(answer["notes"])})
        if info != self._info or (self._lengths and not self._lengths.is_complete):
            self._lengths = None  # the new child measures from the beginning
        self._info = info

    def _write_file(self) -> Path:
        """Return the file that the child reads. Raises PreviewError."""
        self._folder = tempfile.TemporaryDirectory(prefix="tailor-rows-")
        folder = Path(self._folder.name)
        try:
            if self.write_rows:
                return self.write_rows(folder)
            return in_child.as_lines(self.dataset, folder / "rows.jsonl")
        except DatasetError as error:
            self.close()
            (found,) = error.problems
            problem = f"the rows cannot be shown: {found.problem.rstrip('.')}"
            raise PreviewError(Problem("dataset", problem, found.fix)) from None
        except OSError:
            self.close()
            raise

    def _ask(self, what: str, **details: Any) -> Any:
        with self._lock:
            if self._child is None:
                self._start()
            return self._exchange(what, SECONDS_TO_ANSWER, **details)

    def _exchange(self, what: str, seconds: float, **details: Any) -> Any:
        """Return the answer to one request. Raises PreviewError; a child that gives none ends."""
        assert self._child
        try:
            return self._child.ask({"do": what} | details, seconds)
        except ChildError as error:
            if error.cause != "refused" or what == "load":
                self.close()
            raise _cannot_show(error) from None

    def _read_cache(self, info: PreviewInfo) -> RowLengths | None:
        if self.cache:
            with suppress(OSError, ValueError):
                return RowLengths.read(self.cache / f"{info.key}.npy", info.rows, info.generates)
        return None

    def _write_cache(self, info: PreviewInfo) -> None:
        """Keep complete lengths, if all rows could be read; the oldest files go."""
        if not self.cache or not self._lengths or self._lengths.unreadable_rows:
            return
        with suppress(OSError):  # a full disk only costs time
            self.cache.mkdir(parents=True, exist_ok=True)
            kept = sorted(self.cache.glob("*.npy"), key=lambda path: path.stat().st_mtime)
            for oldest in kept[: max(0, len(kept) - MAX_CACHED_FILES + 1)]:
                oldest.unlink()
            self._lengths.write(self.cache / f"{info.key}.npy")


def _cannot_show(error: ChildError) -> PreviewError:
    """Return the error in words, with the fix for its cause."""
    (problem,) = error.problems
    if error.cause == "refused":
        return PreviewError(problem)
    if os.name == "posix" and ALARM in error.reason:
        why, fix = "the chat template took too long over a row", "choose another model"
    elif error.cause == "died":
        why, fix = f"the preview stopped: {error.reason}", "try again"
    else:
        why, fix = f"the preview {error.reason}", "try again"
    return PreviewError(Problem("dataset", f"the rows cannot be shown: {why}", fix))


def _shown_row(row: dict[str, Any]) -> ShownRow:
    rejected = row.get("rejected")
    if rejected:
        rejected = ShownText(**rejected | {"pieces": _pieces(rejected["pieces"])})
    pieces, lost = _pieces(row.get("pieces", ())), tuple(row.get("lost", ()))
    return ShownRow(**row | {"pieces": pieces, "rejected": rejected, "lost": lost})


def _pieces(pairs: Iterable[tuple[str, bool]]) -> tuple[tuple[str, bool], ...]:
    """Return pairs as tuples, which JSON has as lists."""
    return tuple((text, counts) for text, counts in pairs)
