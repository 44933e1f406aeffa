"""Prompts and answers that are written as plain text: as messages, or as they are.

Never imports torch.
"""

import json
from dataclasses import dataclass
from typing import Any

from ..contract.row_columns import Row
from .chat import ANSWER_COLUMNS

NO_TEMPLATE = "The model has no chat template, so the prompts stay plain text."
IN_TEMPLATE = (
    "The prompts are plain text: each is put into the model's chat template as a user's message, "
    "its answer as the assistant's. Switch use_chat_template off to leave them as they are."
)
AS_THEY_ARE = (
    "The prompts are plain text and stay as they are, outside of the model's chat template: "
    "use_chat_template is off."
)
CUT_PROMPTS = (
    "The prompt of a row is the text with which both answers begin. It stays plain text, outside "
    "of the model's chat template."
)
PRINTED_ALREADY = (
    "The prompts hold tokens of the model's chat template already, so they stay as they are."
)


@dataclass(frozen=True)
class PlainText:
    """Decision about rows whose prompts are plain text."""

    becomes_chat: bool = False
    note: str = ""
    """Sentence for the user; empty for rows of another kind."""

    def row(self, row: Row, tokenizer: Any) -> dict[str, Any]:
        """Return a row as it is trained on."""
        if not self.becomes_chat or not isinstance(row.get("prompt"), str):
            return dict(row)
        chat = {name: value for name, value in row.items() if name not in ANSWER_COLUMNS}
        chat["prompt"] = [{"role": "user", "content": row["prompt"]}]
        for name in ANSWER_COLUMNS:
            if name in row:
                answer = row[name].removesuffix(tokenizer.eos_token or "")
                chat[name] = [{"role": "assistant", "content": answer}]
        return chat


def cuts_prompt(line: bytes, row: Row) -> bool:
    """Return whether a row's prompt was cut from the texts of its answers in a line of a file."""
    if not isinstance(row.get("chosen"), str):
        return False
    return row["prompt"] + row["chosen"] in json.loads(line).values()


def decide(row: Row, tokenizer: Any, *, uses_template: bool, is_cut: bool) -> PlainText:
    """Return what happens to rows like this one, in TRL's columns.

    `is_cut` says that the prompts were cut from the answers, so that they may end within a word.
    """
    if not isinstance(row.get("prompt"), str):
        return PlainText()
    if tokenizer.chat_template is None:
        return PlainText(note=NO_TEMPLATE)
    if not uses_template:
        return PlainText(note=AS_THEY_ARE)
    if is_cut:
        return PlainText(note=CUT_PROMPTS)
    if any(token in row["prompt"] for token in tokenizer.all_special_tokens):
        return PlainText(note=PRINTED_ALREADY)
    return PlainText(becomes_chat=True, note=IN_TEMPLATE)
