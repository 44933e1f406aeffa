"""What the model sees of a row: its tokens, and which of them count for the loss. As TRL's trainers prepare rows.

Never imports torch. tests/workers/test_preview.py holds it against the trainer's own preparation, token by token.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ..contract.stages import STAGES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """A row in tokens."""

    ids: Sequence[int]
    counts: Sequence[bool]
    """Which tokens count for the loss."""
    text: str = ""
    """What was tokenised, if it was asked for."""
    spans: Sequence[tuple[int, int]] = ()
    """Where in the text each token stands; empty for one that the tokenizer added."""

    @property
    def first_counted(self) -> int | None:
        """Index of the first token that counts."""
        return next((index for index, counts in enumerate(self.counts) if counts), None)

    @property
    def end_counted(self) -> int:
        """Index after the last token that counts; 0 if none does."""
        backwards = reversed(range(len(self.counts)))
        return next((index + 1 for index in backwards if self.counts[index]), 0)

    @property
    def num_counted(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Encoder:
    """Turns rows of TRL's columns into tokens."""

    tokenizer: Any
    chat_template: str | None
    """Set if TRL puts one of its own in place of the tokenizer's."""
    on_answers: bool
    """True if only the answers count for the loss."""
    stage: str = "sft"

    def encode_all(self, row: Row, with_text: bool = False) -> tuple[Tokens, ...]:
        """The texts of a row: one, or of a preference two, the chosen first. Raises what the chat template raises."""
        if STAGES[self.stage].generates:
            return (self._prompt(row, with_text),)
        if "chosen" not in row:
            return (self.encode(row, with_text),)
        texts = [
            self._exchange({**row, "completion": row[answer]}, with_text)
            for answer in ("chosen", "rejected")
        ]
        if STAGES[self.stage].head == "score":
            return tuple(from_index(whole, len(whole.ids) - 1) for whole, _prompt in texts)
        begin = min(_shared_length(prompt_ids, whole.ids) for whole, prompt_ids in texts)
        return tuple(from_index(whole, begin) for whole, _prompt in texts)

    def encode(self, row: Row, with_text: bool = False) -> Tokens:
        """A row's tokens, and with the text the places of the tokens in it. Raises what the chat template raises."""
        if "text" in row:
            return self._plain(self._ended(row["text"]), with_text)
        if "messages" in row:
            mask = {"return_assistant_tokens_mask": True} if self.on_answers else {}
            tokens, found = self._chat(row["messages"], row, with_text, **mask)
            return (
                replace(tokens, counts=[bit == 1 for bit in found["assistant_masks"]])
                if mask
                else tokens
            )
        whole, prompt_ids = self._exchange(row, with_text)
        return (
            from_index(whole, _shared_length(prompt_ids, whole.ids)) if self.on_answers else whole
        )

    def _prompt(self, row: Row, with_text: bool) -> Tokens:
        """What stands before an answer that the model draws itself."""
        prompt = row["prompt"]
        if isinstance(prompt, str):
            tokens = self._plain(prompt, with_text)
        else:
            tokens, _found = self._chat(prompt, row, with_text, add_generation_prompt=True)
        return from_index(tokens, len(tokens.ids))

    def _exchange(self, row: Row, with_text: bool) -> tuple[Tokens, Sequence[int]]:
        """(prompt and completion together, the ids of the prompt alone)."""
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str):
            alone = self.tokenizer(text=prompt)["input_ids"]
            return self._plain(prompt + self._ended(completion), with_text), alone
        alone = self._chat(prompt, row, add_generation_prompt=True)[0].ids
        return self._chat([*prompt, *completion], row, with_text)[0], alone

    def _chat(
        self, messages: Sequence[Any], row: Row, with_text: bool = False, **settings: bool
    ) -> tuple[Tokens, Mapping[str, Any]]:
        """(a conversation's tokens, all counting; everything that the tokenizer says of them)."""
        shared = {
            "conversation": messages,
            "chat_template": self.chat_template,
            "tools": json.loads(row["tools"]) if row.get("tools") else None,
        }
        spans = {"tokenizer_kwargs": {"return_offsets_mapping": True}} if with_text else {}
        found = self.tokenizer.apply_chat_template(
            tokenize=True, return_dict=True, **shared, **settings, **spans
        )
        before = {"add_generation_prompt": settings.get("add_generation_prompt", False)}
        text = (
            self.tokenizer.apply_chat_template(tokenize=False, **shared, **before)
            if with_text
            else ""
        )
        return _all_counting(found, text), found

    def _plain(self, text: str, with_text: bool) -> Tokens:
        found = self.tokenizer(text=text, return_offsets_mapping=with_text)
        return _all_counting(found, text if with_text else "")

    def _ended(self, text: str) -> str:
        """A text with the end token, which is inside the loss."""
        end: str = self.tokenizer.eos_token
        return text if text.endswith(end) else text + end


def pieces(tokens: Tokens, max_length: int, tokenizer: Any) -> tuple[list[tuple[str, bool]], str]:
    """([(text, counts for the loss)] of what fits, the text that is cut off). Together they are the whole text."""
    fitting = min(len(tokens.ids), max_length)
    found: list[tuple[str, bool]] = []
    at = 0
    for counts, group in groupby(range(fitting), key=lambda index: tokens.counts[index]):
        text = ""
        for index in group:
            begin, end = tokens.spans[index]
            upto = end if index < len(tokens.ids) - 1 else len(tokens.text)
            text, at = text + tokens.text[at:upto], max(at, upto)
            if (
                begin == end
            ):  # a token that stands nowhere in the text, such as one for its beginning
                text += str(tokenizer.convert_ids_to_tokens(tokens.ids[index]))
        found.append((text, counts))
    return found, tokens.text[at:]


def _all_counting(found: Mapping[str, Any], text: str) -> Tokens:
    ids = found["input_ids"]
    return Tokens(ids, [True] * len(ids), text, found.get("offset_mapping", ()))


def from_index(tokens: Tokens, begin: int) -> Tokens:
    """The same tokens, of which those from an index on count."""
    return replace(tokens, counts=[index >= begin for index in range(len(tokens.ids))])


def _shared_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two rows of them begin with alike. A completion begins where the prompt and the whole part."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next(
        (index for index, (one, other) in pairs if one != other), min(len(ids), len(others))
    )
