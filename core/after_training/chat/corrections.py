"""Keep answers of a chat as rows to train on: a conversation, or a preference of two answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.after_training.chat.errors import ChatError
from core.after_training.chat.session import ChatMessage
from core.job import Problem
from core.runs import Home

ANSWERS = "chat-answers.jsonl"
PREFERENCES = "chat-preferences.jsonl"
FOLDER = "from-chat"
"""Folder of both files among the uploads, where the page offers them as data."""


def keep_answer(home: Home, messages: Sequence[ChatMessage], answer: str) -> Path:
    """Add a conversation with this answer to the kept rows. Return their file.

    Raises ChatError for an empty answer, OSError.
    """
    kept = [dict(message) for message in messages]
    kept.append({"role": "assistant", "content": _required(answer)})
    return _append(home, ANSWERS, {"messages": kept})


def keep_preference(
    home: Home, messages: Sequence[ChatMessage], chosen: str, rejected: str
) -> Path:
    """Add two answers to the same conversation to the kept preferences. Return their file.

    Raises ChatError for an empty answer and for two that are the same, OSError.
    """
    if chosen.strip() == rejected.strip():
        problem = Problem("answer", "both answers are the same", "ask again, or edit one")
        raise ChatError(problem)
    row: dict[str, object] = {"prompt": [dict(message) for message in messages]}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        row[name] = [{"role": "assistant", "content": _required(answer)}]
    return _append(home, PREFERENCES, row)


def _required(answer: str) -> str:
    if not answer.strip():
        raise ChatError(Problem("answer", "it is empty", "write what the model should say"))
    return answer.strip()


def _append(home: Home, name: str, row: Mapping[str, object]) -> Path:
    path = home.uploads / FOLDER / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
