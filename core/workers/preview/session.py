"""One file as one model sees it: its rows, their tokens and their lengths. Never imports torch."""

import hashlib
import json
import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.training.contract.failures import TrainingError
from core.training.contract.row_columns import Row
from core.training.contract.row_reader import BadRow
from core.training.contract.stages import STAGES
from core.training.data.encoders import encoder_for
from core.training.data.plain_text import cuts_prompt, decide
from core.training.data.tokenizer import CHAT_TEMPLATE, load_tokenizer
from core.training.data.tokens import Tokens, split_by_loss

from .measurements import RowMeasurements
from .rows_on_disk import RowsOnDisk

SECONDS_OF_MEASURING = 0.05
"""Longest time that a request waits for the measuring."""
SAMPLE_ROWS = 1000
MAX_REASON_CHARACTERS = 500
TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "none": "",
        "model": "",
        "default": "The model has no chat template: a ChatML one is used, "
        "and saved with the result.",
        "marked": "The model's chat template does not mark the answers: "
        "TRL's form of it, which does, is used.",
    }
)
"""Chat template in use -> what to say about it."""


class PreviewSession:
    """One file, seen through one tokenizer."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.stage = STAGES[request["stage"]]
        self.rows = RowsOnDisk(Path(request["dataset"]), self.stage.id)
        first, is_cut = self._first_row()
        self.tokenizer = _load_tokenizer(request, _is_chat(first))
        uses_template = bool(request.get("use_chat_template", False))
        self.plain_text = decide(first, self.tokenizer, uses_template=uses_template, is_cut=is_cut)
        first = self.plain_text.row(first, self.tokenizer)
        on_answers = bool(request["assistant_only_loss"])
        self.encoder = encoder_for(self.tokenizer, self.stage.id, first, on_answers)
        self.template = self._template() if _is_chat(first) else "none"
        learns_whole_texts = "text" in first and request["assistant_only_loss"]
        notes = (
            str(self.tokenizer.init_kwargs.pop("template_note", "")),
            TEMPLATES[self.template],
            self.plain_text.note,
            self._note(learns_whole_texts),
        )
        self.notes = [note for note in notes if note]
        self.seconds_for_a_row = float(request["seconds_for_a_row"])
        self.lengths = RowMeasurements()
        self._to_measure = self._measuring_order()

    def _first_row(self) -> tuple[Row, bool]:
        """Return (the first row that can be read, whether its prompt was cut from its answers).

        Raises TrainingError.
        """
        reason = "the dataset has no rows."
        for index in range(min(len(self.rows), SAMPLE_ROWS)):
            try:
                row = self.rows.row(index)
                return row, cuts_prompt(self.rows.json(index), row)
            except BadRow as error:
                if index == 0:
                    reason = f"dataset line {self.rows.line(index)}: {error}."
        raise TrainingError(reason)

    def _template(self) -> str:
        if self.tokenizer.chat_template == CHAT_TEMPLATE:
            return "default"
        return "marked" if self.encoder.chat_template else "model"

    def _note(self, learns_whole_texts: bool) -> str:
        """Return what a person should know about the tokens that count."""
        if self.stage.generates:
            return "The model generates the answers itself: a row ends where they begin."
        if self.stage.learns_chosen_prompt:
            return (
                "ORPO compares the answers; the chosen text it also learns whole, "
                "question included."
            )
        if self.stage.head == "score":
            return "The score of an answer is read at its last token."
        if learns_whole_texts:
            return "The rows are plain texts: every token counts."
        return ""

    def info(self) -> dict[str, Any]:
        """Return what is known once everything is loaded.

        The same key means the same lengths, in any folder.
        """
        encoder = self.encoder
        parts = (
            self.rows.sha256,
            self.tokenizer.backend_tokenizer.to_str(),
            self.tokenizer.chat_template,
            type(encoder).__name__,
            encoder.chat_template,
            encoder.on_answers,
            self.stage.id,
            self.plain_text.becomes_chat,
        )
        return {
            "rows": len(self.rows),
            "key": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
            "template": self.template,
            "notes": self.notes,
            "generates": self.stage.generates,
        }

    def _measuring_order(self) -> Iterator[int]:
        """Yield every row once: a sample spread over the file, then the rest."""
        num_rows = len(self.rows)
        sample = random.Random(0).sample(range(num_rows), min(SAMPLE_ROWS, num_rows))
        yield from sorted(sample)
        chosen = frozenset(sample)
        yield from (index for index in range(num_rows) if index not in chosen)

    def measure(self) -> bool:
        """Measure some more rows; return whether there are others."""
        deadline = time.monotonic() + SECONDS_OF_MEASURING
        for index in self._to_measure:
            try:
                texts, lost = self._encode(self._row(index))
            except Exception as error:  # a template may raise anything
                self.lengths.add_unreadable(self.rows.line(index), _why_not(error))
            else:
                self.lengths.add(texts)
                self.lengths.add_lost(self.rows.line(index), lost)
            if time.monotonic() > deadline:
                return True
        return False

    def show(self, first: int, count: int, max_length: int) -> list[dict[str, Any]]:
        """Return some rows as the model will see them."""
        last = min(first + count, len(self.rows))
        return [self._show(index, max_length) for index in range(max(0, first), last)]

    def _show(self, index: int, max_length: int) -> dict[str, Any]:
        shown: dict[str, Any] = {"index": index, "line": self.rows.line(index)}
        try:
            row = self._row(index)
            shown["row"] = row
            texts, shown["lost"] = self._encode(row, with_text=True)
            chosen, *others = [self._shown_text(text, max_length) for text in texts]
        except Exception as error:  # a template may raise anything
            return shown | {"error": _why_not(error)}
        return (
            shown | chosen | {"rejected": others[0] if others else None, "label": row.get("label")}
        )

    def _shown_text(self, tokens: Tokens, max_length: int) -> dict[str, Any]:
        fitting, cut = split_by_loss(tokens, max_length, self.tokenizer)
        return {
            "pieces": fitting,
            "cut": cut,
            "num_tokens": len(tokens.ids),
            "num_counted": sum(tokens.loss_mask[:max_length]),
        }

    def _row(self, index: int) -> Row:
        """Return a row as it is trained on. Raises BadRow."""
        return self.plain_text.row(self.rows.row(index), self.tokenizer)

    def _encode(
        self, row: Row, with_text: bool = False
    ) -> tuple[tuple[Tokens, ...], tuple[str, ...]]:
        """Return (the tokens of a row, what the chat template does not print of it).

        A chat template is a program that came with a model: one that loops ends this process.
        """
        _set_alarm(self.seconds_for_a_row)
        try:
            return self.encoder.encode_all(row, with_text), self.encoder.lost(row)
        finally:
            _set_alarm(0)


def _is_chat(row: Row) -> bool:
    """Return whether a row holds messages."""
    return isinstance(next(iter(row.values())), list) or isinstance(row.get("prompt"), list)


def _load_tokenizer(request: Mapping[str, Any], is_chat: bool) -> Any:
    """Return a model's tokenizer. Raises TrainingError."""
    model = str(request["model"])
    tokenizer = load_tokenizer(model, request["revision"], is_conversational=is_chat)
    if not tokenizer.is_fast:
        problem = f"The tokenizer of {model} is of an old kind"
        raise TrainingError(f"{problem}, which cannot say where tokens stand.")
    return tokenizer


def _why_not(error: Exception) -> str:
    """Return why a row has no tokens."""
    return str(error)[:MAX_REASON_CHARACTERS]


def _set_alarm(seconds: float) -> None:
    """End this process in some seconds, unless 0 is set in time: nothing else stops a loop in a
    template."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
