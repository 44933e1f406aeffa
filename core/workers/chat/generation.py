"""Write one answer, piece by piece. Another thread can stop it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from core.training.contract.failures import TrainingError
from core.workers.trained_model import TrainedModel

from .loaded import answering

MIN_ANSWER_TOKENS = 16
UNFINISHED = "\ufffd"
"""End of a text whose last character lacks tokens."""


@dataclass(frozen=True)
class AnswerRequest:
    """One answer to write."""

    token_ids: list[int]
    uses_adapter: bool
    settings: Mapping[str, Any]
    num_tokens: int
    """Longest conversation, answer included."""
    stop: threading.Event


class _Watch(StoppingCriteria):
    """Counts tokens, and ends an answer when it was asked to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.num_tokens = 0
        self.first_at: float | None = None

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        self.num_tokens += 1
        self.first_at = self.first_at or time.monotonic()
        return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device)


class _PieceStreamer(BaseStreamer):
    """Passes on the text of each token as soon as it is whole.

    A character may take several tokens, and some tokenizers print a token by what is before it. So
    the last tokens are decoded with those before them.
    """

    def __init__(self, tokenizer: Any, on_piece: Callable[[str], None]) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=True)
        self._on_piece = on_piece
        self._ids: list[int] = []
        self._first = 0
        """First token that is decoded."""
        self._num_sent = 0
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then token after token."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._ids += value.flatten().tolist()
        before = self._decode(self._ids[self._first : self._num_sent])
        text = self._decode(self._ids[self._first :])
        if len(text) > len(before) and not text.endswith(UNFINISHED):
            self._on_piece(text[len(before) :])
            self._first, self._num_sent = self._num_sent, len(self._ids)

    def end(self) -> None:
        """Pass on what is left, such as half a character."""
        before = self._decode(self._ids[self._first : self._num_sent])
        rest = self._decode(self._ids[self._first :])[len(before) :]
        if rest:
            self._on_piece(rest)


def answer(
    model: TrainedModel, request: AnswerRequest, on_piece: Callable[[str], None]
) -> dict[str, object]:
    """Write an answer and return how it ended.

    Raises TrainingError for a conversation that is too long, and what the libraries raise.
    """
    config = _generation_config(model, request)
    started = time.monotonic()
    watch = _Watch(request.stop)
    ids = torch.tensor([request.token_ids], device=model.model.device)
    torch.manual_seed(int(request.settings["seed"]))
    with answering(model, request.uses_adapter):
        model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([watch]),
            streamer=_PieceStreamer(model.tokenizer, on_piece),
        )
    ended = time.monotonic()
    ending = "complete"
    if request.stop.is_set():
        ending = "stopped"
    elif watch.num_tokens >= (config.max_new_tokens or 0):
        ending = "limit"
    return {
        "ending": ending,
        "num_tokens": watch.num_tokens,
        "seconds": ended - started,
        "seconds_to_first": (watch.first_at or ended) - started,
    }


def _generation_config(model: TrainedModel, request: AnswerRequest) -> GenerationConfig:
    """Return the settings of an answer. Raises TrainingError if there is no room for one."""
    settings = request.settings
    room = request.num_tokens - len(request.token_ids)
    if room < MIN_ANSWER_TOKENS:
        raise TrainingError(
            f"The conversation has {len(request.token_ids):,} tokens, but this chat holds "
            f"{request.num_tokens:,} with the answer.",
            cause="too_long",
        )
    is_greedy = settings["temperature"] == 0
    sampling: dict[str, object] = {}
    if not is_greedy:
        sampling = {
            "temperature": float(settings["temperature"]),
            "top_p": max(float(settings["top_p"]), 1e-3),  # 0 would leave no token
            "top_k": 0,
        }
    return GenerationConfig(
        max_new_tokens=min(int(settings["max_tokens"]), room),
        do_sample=not is_greedy,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=list(model.end_ids) or None,
        **sampling,
    )
