"""Conversations as text, through chat templates of strangers: limited in time and memory."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.training.contract.failures import TrainingError
from core.training.data.chat import ChatTemplate

SECONDS_FOR_TEMPLATE = 3.0
BYTES_FOR_TEMPLATE = 2**30
MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Prompt:
    """Conversation that a model is to answer."""

    tokenizer: Any
    model: str
    """Name of the model, for messages."""
    messages: Sequence[Mapping[str, str]]


class TemplateTooSlow(BaseException):
    """Raised by the alarm. No Exception, which a template's own code might catch."""


def prompt_text(prompt: Prompt) -> str:
    """Return the conversation as the model reads it before it answers.

    A model without a chat template continues the plain texts. Raises TrainingError for a template
    that refuses the conversation, takes too long or takes too much memory.
    """
    if not prompt.tokenizer.chat_template:
        return "\n".join(message["content"] for message in prompt.messages)
    template = ChatTemplate(prompt.tokenizer)
    with _named_faults(prompt), _limited():
        return template.render(list(prompt.messages), opens_answer=True)


def require_bounded_template(prompt: Prompt) -> None:
    """Raise TrainingError if the chat template takes too long over a question and its answer.

    Loading prints both to find what ends a turn.
    """
    if prompt.tokenizer.chat_template:
        with _named_faults(prompt), _limited():
            # The property swallows what the template raises, but not the alarm.
            _ = ChatTemplate(prompt.tokenizer).turn_shape


@contextmanager
def _named_faults(prompt: Prompt) -> Iterator[None]:
    """Turn what a template raises into a TrainingError."""
    try:
        yield
        return
    except TemplateTooSlow:
        reason = f"takes longer than {SECONDS_FOR_TEMPLATE:g} seconds over this conversation"
    except MemoryError:
        reason = "takes too much memory over this conversation"
    except Exception as error:  # a template may raise anything
        reason = f"refuses this conversation: {str(error)[:MAX_REASON_CHARACTERS]}"
    raise TrainingError(f"The chat template of {prompt.model} {reason}.", cause="template")


@contextmanager
def _limited() -> Iterator[None]:
    """Limit the time and the memory of what runs inside, in the main thread."""
    if sys.platform == "win32":
        yield
        return
    import resource

    before = signal.signal(signal.SIGALRM, _on_alarm)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS_FOR_TEMPLATE)
        if used := _data_bytes():
            resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES_FOR_TEMPLATE, limits[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.signal(signal.SIGALRM, before)


def _on_alarm(_number: int, _frame: object) -> None:
    raise TemplateTooSlow


def _data_bytes() -> int | None:
    """Return what this process counts against RLIMIT_DATA; None where there is no /proc."""
    if sys.platform == "win32":
        return None
    import resource

    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
    except OSError:
        return None
    return int(pages) * resource.getpagesize()
