"""One file as one model sees it: rows on disk, a tokenizer, the tokens and lengths of rows. Never imports torch."""

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
from core.training.contract.row_reader import BadRow
from core.training.contract.stages import STAGES, Stage
from core.training.data.preferences import PreferenceEncoder
from core.training.data.tokenizer import CHAT_TEMPLATE, load_tokenizer, training_template
from core.training.data.tokens import Encoder, Tokens, split_by_loss

from .lengths import Lengths
from .rows_on_disk import RowsOnDisk

SECONDS_OF_MEASURING = 0.05
"""How long a request may have to wait for the measuring."""
SECONDS_OF_SEARCHING = 1.0
ROWS_IN_SAMPLE = 1000
TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "none": "",
        "model": "",
        "default": "The model has no chat template: a ChatML one is used, and saved with the result.",
        "marked": "The model's chat template does not mark the answers: TRL's form of it, which does, is used.",
    }
)
"""Which chat template rows are seen through -> what to say about it."""


class PreviewSession:
    """One file, seen through one tokenizer."""

    def __init__(self, request: Mapping[str, Any]):
        model = str(request["model"])
        self.stage = str(request["stage"])
        stage = STAGES[self.stage]
        self.rows = RowsOnDisk(Path(request["dataset"]), self.stage)
        if not len(self.rows):
            raise TrainingError(f"{request['dataset']} has no rows.")
        try:
            first = self.rows.row(0)
        except BadRow as error:
            raise TrainingError(f"dataset line {self.rows.line(0)}: {error}.") from None
        is_chat = isinstance(next(iter(first.values())), list)
        is_whole = "prompt" not in first
        self.tokenizer = load_tokenizer(model, request["revision"], is_conversational=is_chat)
        if not self.tokenizer.is_fast:
            raise TrainingError(
                f"The tokenizer of {model} is of an old kind, which cannot say where tokens stand."
            )
        is_text = "text" in first
        on_answers = not is_text and not stage.learns_every_token
        if "assistant_only_loss" in stage.fields:
            on_answers = on_answers and request["assistant_only_loss"]
        template = (
            training_template(self.tokenizer, model)
            if on_answers and is_chat and is_whole
            else None
        )
        self.encoder = self._encoder(template, on_answers)
        self.template = _template(self.tokenizer, template) if is_chat else "none"
        notes = (
            TEMPLATES[self.template],
            _note(stage, is_text and request["assistant_only_loss"]),
        )
        self.notes = list(filter(None, notes))
        self.seconds_for_a_row = float(request["seconds_for_a_row"])
        self.lengths = Lengths(len(self.rows))
        self._to_measure = self._order()

    def _encoder(self, template: str | None, on_answers: bool) -> Encoder | PreferenceEncoder:
        if STAGES[self.stage].takes_pairs_as_text:
            return PreferenceEncoder(self.tokenizer, self.stage)
        return Encoder(self.tokenizer, template, on_answers, self.stage)

    def about(self) -> dict[str, Any]:
        """What is known once everything is loaded. The same key is the same lengths, wherever the files lie."""
        parts = (
            self.rows.sha256,
            self.tokenizer.backend_tokenizer.to_str(),
            self.tokenizer.chat_template,
        )
        encoder = self.encoder
        seen_by = (type(encoder).__name__, encoder.chat_template, encoder.on_answers, self.stage)
        return {
            "rows": len(self.rows),
            "key": hashlib.sha256(json.dumps([*parts, *seen_by]).encode()).hexdigest(),
            "template": self.template,
            "notes": self.notes,
            "is_drawn": STAGES[self.stage].generates,
        }

    def _order(self) -> Iterator[int]:
        """Every row once: a sample spread over the file, then the rest."""
        sample = sorted(
            random.Random(0).sample(range(len(self.rows)), min(ROWS_IN_SAMPLE, len(self.rows)))
        )
        yield from sample
        chosen = frozenset(sample)
        yield from (index for index in range(len(self.rows)) if index not in chosen)

    def measure(self) -> bool:
        """Measures some more rows; False when all are measured."""
        deadline = time.monotonic() + SECONDS_OF_MEASURING
        for index in self._to_measure:
            try:
                texts = self._encode(index)
            except Exception as error:  # whatever a template may raise
                self.lengths.add_unreadable(self.rows.line(index), _why_not(error))
            else:
                self.lengths.add(texts)
            if time.monotonic() > deadline:
                return True
        return False

    def show(self, first: int, count: int, max_length: int) -> list[dict[str, Any]]:
        """Some rows as the model will see them."""
        return [
            self._show(index, max_length)
            for index in range(max(0, first), min(first + count, len(self.rows)))
        ]

    def search(self, text: str, first: int, most: int) -> dict[str, Any]:
        """Rows that hold a text, as far as the time for one answer goes: [row, line], and the row to go on from."""
        found, begin = self.rows.search(text, first, most, SECONDS_OF_SEARCHING)
        return {"found": [(index, self.rows.line(index)) for index in found], "next": begin}

    def _show(self, index: int, max_length: int) -> dict[str, Any]:
        shown = {"index": index, "line": self.rows.line(index)}
        try:
            row = self.rows.row(index)
            chosen, *others = (
                self._shown(text, max_length) for text in self._encode(index, with_text=True)
            )
        except Exception as error:
            return shown | {"error": _why_not(error)}
        return shown | chosen | {"rejected": next(iter(others), None), "label": row.get("label")}

    def _shown(self, tokens: Tokens, max_length: int) -> dict[str, Any]:
        fitting, cut = split_by_loss(tokens, max_length, self.tokenizer)
        counted = sum(tokens.loss_mask[:max_length])
        return {
            "pieces": fitting,
            "cut": cut,
            "num_tokens": len(tokens.ids),
            "num_counted": counted,
        }

    def _encode(self, index: int, with_text: bool = False) -> tuple[Tokens, ...]:
        """A chat template is a program that came with a model: one that loops takes this process with it."""
        row = self.rows.row(index)
        _set_alarm(self.seconds_for_a_row)
        try:
            return self.encoder.encode_all(row, with_text)
        finally:
            _set_alarm(0)


def _template(tokenizer: Any, marked: str | None) -> str:
    if tokenizer.chat_template == CHAT_TEMPLATE:
        return "default"
    return "marked" if marked else "model"


def _note(stage: Stage, learns_texts_whole: bool) -> str:
    """What a person should know of what counts."""
    if stage.generates:
        return "The model draws the answers itself: a row ends where they begin."
    if stage.learns_chosen_prompt:
        return "ORPO compares the answers; the chosen text it also learns whole, question included."
    if stage.head == "score":
        return "The score of an answer is read at its last token."
    return "The rows are plain texts: every token counts." if learns_texts_whole else ""


def _why_not(error: Exception) -> str:
    """Why a row has no tokens."""
    return (
        str(error)
        if isinstance(error, BadRow)
        else f"The chat template refuses this row: {error}"[:500]
    )


def _set_alarm(seconds: float) -> None:
    """Ends this process unless it is set to 0 in time; nothing inside a loop of a template could."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
