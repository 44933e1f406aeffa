"""Rows as a model will see them, and how long they are: asks a child process that holds the tokenizer.

The child is started when it is first needed, stays, and is replaced when it died or took too long. Chat templates are
programs that come with models: they run in the child and nowhere else.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.dataset.process import Child, ChildDied

MODULE = "core.training.preview"
VARIABLES = r"HF_.*|HTTPS?_PROXY|NO_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME"
SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
SECONDS_TO_LOAD = 120
SECONDS_TO_ANSWER = 10
SECONDS_BETWEEN_LOOKS = 0.1
ALARM = "signal 14"


class PreviewError(Exception):
    """Why rows cannot be shown, as a plain sentence."""


@dataclass(frozen=True)
class ShownRow:
    """One row as the model will see it."""

    index: int
    """0-based among the rows."""
    line: int
    """1-based in the file."""
    pieces: tuple[tuple[str, bool], ...] = ()
    """(text, counts for the loss), in order."""
    cut: str = ""
    """What max_length cuts off."""
    num_tokens: int = 0
    num_counted: int = 0
    """Tokens that count for the loss, after the cut."""
    error: str = ""
    """Why there is nothing to show."""


@dataclass(frozen=True)
class Lengths:
    """How long the rows are, in tokens; exact for the rows measured so far."""

    rows: int
    measured: int
    unreadable_rows: int
    p50: int
    p95: int
    max: int
    num_tokens: int
    num_counted_tokens: int
    histogram: tuple[dict[str, int], ...]
    """{from, to, rows} of each bin: rows of `from` up to `to` tokens, `to` left out."""
    truncated_rows: int
    """Longer than max_length."""
    fully_masked_rows: int
    """Without a token that counts for the loss, within max_length."""
    unanswered_rows: int
    """Those of them without such a token at any length."""
    lost_answer_rows: int
    """Those of them whose whole answer is cut off."""
    cut_answer_rows: int
    """Rows that lose a part of their answer."""

    @property
    def is_complete(self) -> bool:
        return self.measured == self.rows

    def to_json(self) -> dict[str, object]:
        """What `check --json` prints of it."""
        tokens = {"p50": self.p50, "p95": self.p95, "max": self.max, "histogram": list(self.histogram)}
        names = ("truncated_rows", "fully_masked_rows", "lost_answer_rows", "cut_answer_rows", "measured")
        return {"tokens": tokens} | {name: getattr(self, name) for name in names}


def _silent(_lengths: Lengths) -> None:
    """Tells nobody."""


@dataclass
class Preview:
    """One dataset file, seen through one model's tokenizer. May be asked from several threads."""

    dataset: Path
    """A JSONL file."""
    model: str
    """A folder or a Hub id."""
    revision: str = "main"
    assistant_only_loss: bool = True
    seconds_for_a_row: float = 8
    """What a chat template may take for one row; one that takes longer ends the child."""
    _child: Child | None = field(default=None, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def rows(self, first: int, num_rows: int, max_length: int) -> tuple[ShownRow, ...]:
        """Rows from the 0-based `first` on; fewer at the end. Raises PreviewError."""
        found = self._ask("rows", first=first, count=num_rows, max_length=max_length)
        return tuple(ShownRow(**row | {"pieces": tuple(map(tuple, row.get("pieces", ())))}) for row in found)

    def find(self, text: str, first: int = 0) -> int | None:
        """The index of the first row from `first` on, round the end, that holds a text. Raises PreviewError."""
        found: int | None = self._ask("find", text=text, first=first)
        return found

    def lengths(self, max_length: int) -> Lengths:
        """What is known of the lengths by now, at once; more rows are measured meanwhile. Raises PreviewError."""
        found = self._ask("lengths", max_length=max_length)
        return Lengths(**found | {"histogram": tuple(found["histogram"])})

    def all_lengths(self, max_length: int, on_progress: Callable[[Lengths], None] = _silent) -> Lengths:
        """The lengths of every row, once all are measured. Raises PreviewError."""
        while not (found := self.lengths(max_length)).is_complete:
            on_progress(found)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return found

    def close(self) -> None:
        """Ends the child; the next question starts another."""
        with self._lock:
            if self._child:
                self._child.kill()
                self._child = None

    def _ask(self, what: str, **details: Any) -> Any:
        with self._lock:
            if self._child is None:
                self._child = Child(MODULE, VARIABLES, SETTINGS)
                fields = ("model", "revision", "assistant_only_loss", "seconds_for_a_row")
                job = {name: getattr(self, name) for name in fields}
                self._exchange("load", SECONDS_TO_LOAD, dataset=str(self.dataset.absolute()), **job)
            return self._exchange(what, SECONDS_TO_ANSWER, **details)

    def _exchange(self, what: str, seconds: float, **details: Any) -> Any:
        """One request and its answer. A child that fails to answer is given up. Raises PreviewError."""
        assert self._child
        try:
            self._child.send({"do": what} | details)
            message = self._child.receive(seconds)
        except ChildDied as error:
            self.close()
            looped = os.name == "posix" and ALARM in str(error)
            said = "the chat template took too long over a row" if looped else f"the preview stopped: {error}"
            raise PreviewError(f"Rows cannot be shown: {said}.") from None
        if message is None:
            self.close()
            raise PreviewError(f"Rows cannot be shown: no answer within {seconds:g} seconds.")
        if "error" in message:
            if what == "load":
                self.close()
            raise PreviewError(message["error"])
        return message["answer"]
