"""One conversation as HTML: each message with the answers of one or two models side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from core.wording import duration
from ui.render.answer import answer_html

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
    shown = [_turn(labels, turn, is_busy=False) for turn in turns[:-1]]
    shown.append(_turn(labels, turns[-1], is_busy=is_busy))
    busy = "true" if is_busy else "false"
    return (
        f'<div class="try-log"><div role="log" aria-busy="{busy}" aria-label="Conversation">'
        f"{''.join(shown)}</div></div>"
    )


def _turn(labels: Sequence[str], turn: ShownTurn, *, is_busy: bool) -> str:
    pairs = zip(labels, turn.answers, strict=False)
    answers = "".join(_answer(label, answer, is_busy) for label, answer in pairs)
    return (
        f'<div class="turn"><p class="question">{escape(turn.question)}</p>'
        f'<div class="try-answers">{answers}</div></div>'
    )


def _answer(label: str, answer: ShownAnswer, is_busy: bool) -> str:
    facts = ""
    if answer.ending:
        facts = _facts(answer)
    elif not is_busy:
        facts = "not finished" if answer.text else "no answer"
    shown = answer_html(answer.text)
    if not shown and not facts:
        shown = "<p>...</p>"
    elif not shown and answer.ending == "complete":
        shown = '<p class="facts">an empty answer</p>'
    return (
        f'<div><p class="side">{escape(label)}</p>{shown}<p class="facts">{escape(facts)}</p></div>'
    )


def _facts(answer: ShownAnswer) -> str:
    taken = duration(answer.seconds) if answer.seconds >= 1 else "less than 1 s"
    unit = "token" if answer.num_tokens == 1 else "tokens"
    facts = (f"{answer.num_tokens:,} {unit} in {taken}", ENDINGS.get(answer.ending, answer.ending))
    return " · ".join(filter(None, facts))
