"""One conversation as HTML: each message with the answers of one or two models side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from core.wording import duration
from ui.render.markdown import answer_html

ENDINGS = {"limit": "cut at its longest", "stopped": "stopped", "complete": ""}
EMPTY = (
    '<div class="try-log empty"><p>Ask both models the same, such as <b>Who are you?</b>, and see '
    "what the training has changed.</p></div>"
)


@dataclass
class ShownAnswer:
    """Answer of one model, so far."""

    text: str = ""
    ending: str = ""
    """How it ended; "" while it is written."""
    num_tokens: int = 0
    seconds: float = 0.0


@dataclass
class ShownTurn:
    """One message and its answers."""

    question: str
    answers: list[ShownAnswer] = field(default_factory=list)


def conversation(labels: Sequence[str], turns: Sequence[ShownTurn], *, is_busy: bool) -> str:
    """Return all messages with their answers, the last ones in view."""
    if not turns:
        return EMPTY
    shown = "".join(_turn(labels, turn) for turn in turns)
    busy = "true" if is_busy else "false"
    return (
        f'<div class="try-log"><div role="log" aria-busy="{busy}" aria-label="Conversation">'
        f"{shown}</div></div>"
    )


def _turn(labels: Sequence[str], turn: ShownTurn) -> str:
    pairs = zip(labels, turn.answers, strict=False)
    answers = "".join(_answer(label, answer) for label, answer in pairs)
    return (
        f'<div class="turn"><p class="question">{escape(turn.question)}</p>'
        f'<div class="try-answers">{answers}</div></div>'
    )


def _answer(label: str, answer: ShownAnswer) -> str:
    facts = []
    if answer.ending:
        taken = duration(answer.seconds) if answer.seconds >= 1 else "less than 1 s"
        facts.append(f"{answer.num_tokens:,} tokens in {taken}")
        facts.append(ENDINGS.get(answer.ending, answer.ending))
    shown = answer_html(answer.text) or "<p>...</p>"
    said = " · ".join(filter(None, facts))
    return (
        f'<div><p class="side">{escape(label)}</p>{shown}<p class="facts">{escape(said)}</p></div>'
    )
