"""Conversation to answer, and what a loaded model does with it. Imports no torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core.training.contract.failures import TrainingError

MIN_ANSWER_TOKENS = 16
START_OF_THOUGHT = "<think>"
MAX_CHARACTERS_PER_TOKEN = 32
"""On average over a conversation, which is far more than any language has."""
QUICK_CHARACTERS = 1_000_000
"""Length of a text that every tokenizer splits within seconds."""


@dataclass(frozen=True)
class ChatQuestion:
    """Conversation to answer, and how."""

    messages: Sequence[Mapping[str, str]]
    uses_adapter: bool
    settings: Mapping[str, Any]
    num_tokens: int
    """Longest conversation, answer included."""
    stop: threading.Event


class Answerer(Protocol):
    """Loaded model that answers."""

    @property
    def has_template(self) -> bool:
        """False for a model that only continues texts."""

    def answer(self, question: ChatQuestion, on_piece: Callable[[str], None]) -> dict[str, object]:
        """Write an answer and return how it ended.

        Raises TrainingError for a conversation that it cannot answer, and what its libraries
        raise.
        """


def opened_thought(prompt: str) -> str:
    """Return the mark with which a chat template has begun to think for the model, "" if it has
    not. It belongs to the answer, which would else have the end of a thought only."""
    return f"{START_OF_THOUGHT}\n" if prompt.rstrip().endswith(START_OF_THOUGHT) else ""


def too_long(num_tokens: int, most: int) -> TrainingError:
    """Return the refusal of a conversation that leaves no room for an answer."""
    return TrainingError(
        f"The conversation has {num_tokens:,} tokens, but this chat holds {most:,} with the "
        "answer.",
        cause="too_long",
    )


def require_short(prompt: str, most: int) -> None:
    """Raise TrainingError for a text that is too long for any tokenizer.

    Splitting it into tokens could take minutes and all memory: templates may print anything.
    """
    if len(prompt) > max(QUICK_CHARACTERS, most * MAX_CHARACTERS_PER_TOKEN):
        raise TrainingError(
            f"The conversation has {len(prompt):,} characters as the chat template prints it, "
            f"but this chat holds {most:,} tokens with the answer.",
            cause="too_long",
        )
