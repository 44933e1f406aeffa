"""Answer with a model of transformers, piece by piece. Another thread can stop an answer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from core.training.contract.job import Job
from core.training.data.tokenizer import load_tokenizer
from core.workers.trained_model import TOKENIZER, TrainedModel, load_trained

from .prompts import Prompt, prompt_text, require_bounded_template
from .question import MIN_ANSWER_TOKENS, ChatQuestion, opened_thought, require_short, too_long
from .streaming import PieceStreamer


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


@dataclass(frozen=True)
class TrainedAnswerer:
    """Model of transformers, as it was trained or as it is published."""

    model: TrainedModel
    name: str

    @staticmethod
    def load(job: Job, weights: Path | None) -> "TrainedAnswerer":
        """Load what a job has trained, or its model. Raises what the libraries raise."""
        return TrainedAnswerer(load_trained(job, weights), job.model)

    @property
    def has_template(self) -> bool:
        return bool(self.model.tokenizer.chat_template)

    def answer(self, question: ChatQuestion, on_piece: Callable[[str], None]) -> dict[str, object]:
        """Write an answer and return how it ended.

        Raises TrainingError for a conversation that is too long or that the template refuses, and
        what the libraries raise.
        """
        model, settings = self.model, question.settings
        text = prompt_text(Prompt(model.tokenizer, self.name, question.messages))
        require_short(text, question.num_tokens)
        token_ids = model.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"]
        config = _generation_config(model, question, len(token_ids))
        started = time.monotonic()
        watch = _Watch(question.stop)
        ids = torch.tensor([token_ids], device=model.model.device)
        torch.manual_seed(int(settings["seed"]))
        if thought := opened_thought(text):
            on_piece(thought)
        with _answering(model, question.uses_adapter):
            model.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([watch]),
                streamer=PieceStreamer(model.tokenizer, on_piece),
            )
        ended = time.monotonic()
        ending = "complete"
        if question.stop.is_set():
            ending = "stopped"
        elif watch.num_tokens >= (config.max_new_tokens or 0):
            ending = "limit"
        return {
            "ending": ending,
            "num_tokens": watch.num_tokens,
            "seconds": ended - started,
            "seconds_to_first": (watch.first_at or ended) - started,
        }


def read_tokenizer(job: Job, weights: Path | None) -> Any:
    """Return the tokenizer of a result, or of the model of its job, without the model."""
    source, revision = job.model, job.revision
    if weights is not None and (weights / TOKENIZER).is_file():
        source, revision = str(weights), "main"
    return load_tokenizer(source, revision, is_conversational=False)


def require_sound_template(job: Job, weights: Path | None) -> None:
    """Raise TrainingError if the chat template never ends. Loading would print with it."""
    require_bounded_template(Prompt(read_tokenizer(job, weights), job.model, ()))


@contextmanager
def _answering(model: TrainedModel, uses_adapter: bool) -> Iterator[None]:
    """Let a model answer in the precision of its training, with its adapter on or off."""
    with nullcontext() if uses_adapter else model.without_adapter(), model.inference():
        yield


def _generation_config(
    model: TrainedModel, question: ChatQuestion, num_asked: int
) -> GenerationConfig:
    """Return the settings of an answer. Raises TrainingError if there is no room for one."""
    settings = question.settings
    room = question.num_tokens - num_asked
    if room < MIN_ANSWER_TOKENS:
        raise too_long(num_asked, question.num_tokens)
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
