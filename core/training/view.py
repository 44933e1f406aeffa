"""One file as one model sees it: rows on disk, a tokenizer, the tokens and lengths of rows. Never imports torch."""

import json
import random
import signal
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .data import BadRow, Row, parse
from .failure import TrainingError
from .lengths import Lengths
from .tokenizer import load_tokenizer, training_template
from .tokens import Encoder, Tokens, pieces

SECONDS_OF_MEASURING = 0.05
"""How long a request may have to wait for the measuring."""
ROWS_IN_SAMPLE = 1000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RowsOnDisk:
    """The rows of a JSONL file, one at a time; only their places are kept."""

    def __init__(self, path: Path):
        self._path = path
        self._offsets, self._lines = array("Q"), array("Q")
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.removeprefix(BYTE_ORDER_MARK).strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def line(self, index: int) -> int:
        """The 1-based line of a row."""
        return self._lines[index]

    def text(self, index: int) -> bytes:
        """A row as it stands in the file."""
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            return file.readline().removeprefix(BYTE_ORDER_MARK).strip()

    def row(self, index: int) -> Row:
        """A row in TRL's columns. Raises BadRow."""
        return parse(self.text(index))


class View:
    """One file, seen through one tokenizer."""

    def __init__(self, request: Mapping[str, Any]):
        job = SimpleNamespace(**{name: request[name] for name in ("model", "revision", "assistant_only_loss")})
        self.rows = RowsOnDisk(Path(request["dataset"]))
        if not len(self.rows):
            raise TrainingError(f"{request['dataset']} has no rows.")
        try:
            first = self.rows.row(0)
        except BadRow as error:
            raise TrainingError(f"dataset line {self.rows.line(0)}: {error}.") from None
        is_chat = isinstance(next(iter(first.values())), list)
        is_whole = "prompt" not in first
        self.tokenizer = load_tokenizer(job, is_conversational=is_chat, is_language_modeling=is_whole)
        if not self.tokenizer.is_fast:
            raise TrainingError(f"The tokenizer of {job.model} is of an old kind, which cannot say where tokens stand.")
        on_answers = job.assistant_only_loss and "text" not in first
        template = training_template(self.tokenizer, job.model) if on_answers and is_chat and is_whole else None
        self.encoder = Encoder(self.tokenizer, template, on_answers)
        self.seconds_for_a_row = float(request["seconds_for_a_row"])
        self.lengths = Lengths(len(self.rows))
        self._to_measure = self._order()

    def _order(self) -> Iterator[int]:
        """Every row once: a sample spread over the file, then the rest."""
        sample = sorted(random.Random(0).sample(range(len(self.rows)), min(ROWS_IN_SAMPLE, len(self.rows))))
        yield from sample
        chosen = frozenset(sample)
        yield from (index for index in range(len(self.rows)) if index not in chosen)

    def measure(self) -> bool:
        """Measures some more rows; False when all are measured."""
        deadline = time.monotonic() + SECONDS_OF_MEASURING
        for index in self._to_measure:
            try:
                tokens = self._encode(index)
            except Exception:  # bad rows are shown as such; here they only cannot be measured
                self.lengths.add_unreadable()
            else:
                self.lengths.add(len(tokens.ids), tokens.first_counted, tokens.end_counted, tokens.num_counted)
            if time.monotonic() > deadline:
                return True
        return False

    def show(self, first: int, count: int, max_length: int) -> list[dict[str, Any]]:
        """Some rows as the model will see them."""
        return [self._show(index, max_length) for index in range(max(0, first), min(first + count, len(self.rows)))]

    def find(self, text: str, first: int) -> int | None:
        """The first row from `first` on, round the end, that holds a text."""
        wanted = text.casefold()
        order = [*range(first, len(self.rows)), *range(min(first, len(self.rows)))]
        return next((index for index in order if wanted in _as_read(self.rows.text(index)).casefold()), None)

    def _show(self, index: int, max_length: int) -> dict[str, Any]:
        shown = {"index": index, "line": self.rows.line(index)}
        try:
            tokens = self._encode(index, with_text=True)
        except BadRow as error:
            return shown | {"error": str(error)}
        except Exception as error:
            return shown | {"error": f"The chat template refuses this row: {error}"[:500]}
        fitting, cut = pieces(tokens, max_length, self.tokenizer)
        counted = sum(tokens.counts[:max_length])
        return shown | {"pieces": fitting, "cut": cut, "num_tokens": len(tokens.ids), "num_counted": counted}

    def _encode(self, index: int, with_text: bool = False) -> Tokens:
        """A chat template is a program that came with a model: one that loops takes this process with it."""
        row = self.rows.row(index)
        _set_alarm(self.seconds_for_a_row)
        try:
            return self.encoder.encode(row, with_text)
        finally:
            _set_alarm(0)


def _as_read(line: bytes) -> str:
    """A line with its escapes resolved, for a search."""
    return json.dumps(json.loads(line), ensure_ascii=False)


def _set_alarm(seconds: float) -> None:
    """Ends this process unless it is set to 0 in time; nothing inside a loop of a template could."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
