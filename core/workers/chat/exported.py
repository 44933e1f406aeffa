"""Answer with an exported GGUF file in llama.cpp, piece by piece. Imports no torch."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.training.contract.failures import TrainingError
from core.workers.llama_server import LlamaServer

from .question import MIN_ANSWER_TOKENS, ChatQuestion, opened_thought, require_short, too_long

SECONDS_FOR_TEMPLATE = 3.0
MAX_REASON_CHARACTERS = 300
ALL_TOKENS = 0
"""Value of top_k and min_p with which they drop no token."""
RANDOM_SEED = 2**32 - 1
"""Seed with which llama.cpp draws another one each time."""
Event = dict[str, Any]


@dataclass(frozen=True)
class ExportedAnswerer:
    """Exported model in llama.cpp."""

    server: LlamaServer
    name: str
    has_template = True
    """llama.cpp takes a template, if the file holds none."""

    @staticmethod
    def load(tools: str, gguf: Path, num_tokens: int) -> "ExportedAnswerer":
        """Load a file. Raises TrainingError for one that llama.cpp cannot read."""
        try:
            return ExportedAnswerer(LlamaServer(tools, str(gguf), num_tokens), gguf.name)
        except ImportError as error:
            said = f"llama.cpp does not start: {str(error)[:MAX_REASON_CHARACTERS]}"
            raise TrainingError(f"{said}.", cause="llama") from None
        except RuntimeError:
            said = f"llama.cpp cannot read {gguf.name}."
            raise TrainingError(said, cause="gguf") from None

    def answer(self, question: ChatQuestion, on_piece: Callable[[str], None]) -> dict[str, object]:
        """Write an answer and return how it ended. Raises TrainingError, OSError."""
        started = time.monotonic()
        text = self._text(question)
        require_short(text, question.num_tokens)
        tokens = self.server.tokens_of(text, adds_special_tokens=False)
        room = question.num_tokens - len(tokens)
        if room < MIN_ANSWER_TOKENS:
            raise too_long(len(tokens), question.num_tokens)
        if thought := opened_thought(text):
            on_piece(thought)
        first_at = None
        last: Event = {}
        num_tokens = 0
        with closing(self._events(tokens, question, room)) as events:
            for event in events:
                if "error" in event:
                    said = str(event["error"].get("message", ""))[:MAX_REASON_CHARACTERS]
                    raise TrainingError(f"llama.cpp could not answer: {said}.", cause="llama")
                num_tokens = event.get("tokens_predicted", num_tokens)
                first_at = first_at or time.monotonic()
                last = event
                if event["content"]:
                    on_piece(event["content"])
                if question.stop.is_set():
                    break
        ended = time.monotonic()
        return {
            "ending": _ending(last, question),
            "num_tokens": num_tokens,
            "seconds": ended - started,
            "seconds_to_first": (first_at or ended) - started,
        }

    def _text(self, question: ChatQuestion) -> str:
        """Return the conversation as the template in the file prints it. Raises TrainingError."""
        try:
            return self.server.rendered(question.messages, SECONDS_FOR_TEMPLATE)
        except TimeoutError:
            reason = f"takes longer than {SECONDS_FOR_TEMPLATE:g} seconds over this conversation"
        except ValueError as error:
            reason = f"refuses this conversation: {str(error)[:MAX_REASON_CHARACTERS]}"
        raise TrainingError(f"The chat template in {self.name} {reason}.", cause="template")

    def _events(
        self, tokens: list[int], question: ChatQuestion, room: int
    ) -> Generator[Event, None, None]:
        """Yield what llama.cpp says, token by token."""
        settings = question.settings
        return self.server.stream(
            "/completion",
            prompt=tokens,
            n_predict=min(int(settings["max_tokens"]), room),
            temperature=float(settings["temperature"]),
            top_p=float(settings["top_p"]),
            top_k=ALL_TOKENS,
            min_p=ALL_TOKENS,
            samplers=["temperature", "top_p"],  # in the order of transformers
            seed=int(settings["seed"]) % RANDOM_SEED,
        )


def _ending(last: Event, question: ChatQuestion) -> str:
    if last.get("stop_type") == "limit":
        return "limit"
    if question.stop.is_set() and not last.get("stop"):
        return "stopped"
    return "complete"
