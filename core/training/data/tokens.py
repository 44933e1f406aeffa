"""Tokens of a row and which of them count for the loss, as TRL's trainers prepare rows.

Never imports torch. tests/workers/test_preview.py compares it with the trainer's own preparation,
token by token.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ..contract.stages import DEFAULT_STAGE, STAGES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """One text in tokens."""

    ids: Sequence[int]
    loss_mask: Sequence[bool]
    """True for the tokens that count for the loss."""
    text: str = ""
    """Text that was tokenized, if it was asked for."""
    spans: Sequence[tuple[int, int]] = ()
    """Place of each token in the text; empty (begin == end) for one that the tokenizer added."""

    @property
    def first_in_loss(self) -> int | None:
        """Index of the first token that counts; None if none does."""
        return self.loss_mask.index(True) if True in self.loss_mask else None

    @property
    def end_in_loss(self) -> int:
        """Index after the last token that counts; 0 if none does."""
        for index in reversed(range(len(self.loss_mask))):
            if self.loss_mask[index]:
                return index + 1
        return 0

    def with_loss_from(self, begin: int) -> "Tokens":
        """Return the same tokens, of which those from an index on count for the loss."""
        return replace(self, loss_mask=[index >= begin for index in range(len(self.ids))])


@dataclass(frozen=True)
class Encoder:
    """Encoder of rows in TRL's columns."""

    tokenizer: Any
    chat_template: str | None
    """TRL's replacement for the tokenizer's own template, if it needs one."""
    on_answers: bool
    """True if only the answers count for the loss."""
    stage: str = DEFAULT_STAGE

    def encode_all(self, row: Row, with_text: bool = False) -> tuple[Tokens, ...]:
        """Return the texts of a row: one, or two of a preference, the chosen one first.

        Raises what the chat template raises.
        """
        stage = STAGES[self.stage]
        if stage.generates:
            return (self._prompt(row, with_text),)
        if "chosen" not in row:
            return (self.encode(row, with_text),)
        texts = [
            self._prompt_and_completion({**row, "completion": row[answer]}, with_text)
            for answer in ("chosen", "rejected")
        ]
        if stage.head == "score":  # the score is read at the last token
            return tuple(whole.with_loss_from(len(whole.ids) - 1) for whole, _prompt in texts)
        # DPO cuts both texts at the end of the prompt that they share.
        begin = min(_length_shared(prompt_ids, whole.ids) for whole, prompt_ids in texts)
        return tuple(whole.with_loss_from(begin) for whole, _prompt in texts)

    def encode(self, row: Row, with_text: bool = False) -> Tokens:
        """Return the tokens of a text, a conversation or a prompt with its completion.

        Raises what the chat template raises.
        """
        if "text" in row:
            return self._plain_text(self._with_end_token(row["text"]), with_text)
        if "messages" in row:
            return self._conversation(row, with_text)
        whole, prompt_ids = self._prompt_and_completion(row, with_text)
        if not self.on_answers:
            return whole
        return whole.with_loss_from(_length_shared(prompt_ids, whole.ids))

    def _conversation(self, row: Row, with_text: bool) -> Tokens:
        if not self.on_answers:
            return self._chat(row["messages"], row, with_text)[0]
        tokens, encoding = self._chat(
            row["messages"], row, with_text, return_assistant_tokens_mask=True
        )
        return replace(tokens, loss_mask=[bit == 1 for bit in encoding["assistant_masks"]])

    def _prompt(self, row: Row, with_text: bool) -> Tokens:
        """Return the prompt of an online stage; the model generates the rest."""
        prompt = row["prompt"]
        if isinstance(prompt, str):
            tokens = self._plain_text(prompt, with_text)
        else:
            tokens, _encoding = self._chat(prompt, row, with_text, add_generation_prompt=True)
        return tokens.with_loss_from(len(tokens.ids))

    def _prompt_and_completion(self, row: Row, with_text: bool) -> tuple[Tokens, Sequence[int]]:
        """Return (prompt and completion together, the ids of the prompt alone)."""
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str):
            prompt_ids = self.tokenizer(text=prompt)["input_ids"]
            whole = self._plain_text(prompt + self._with_end_token(completion), with_text)
            return whole, prompt_ids
        prompt_ids = self._chat(prompt, row, add_generation_prompt=True)[0].ids
        return self._chat([*prompt, *completion], row, with_text)[0], prompt_ids

    def _chat(
        self, messages: Sequence[Any], row: Row, with_text: bool = False, **options: bool
    ) -> tuple[Tokens, Mapping[str, Any]]:
        """Return (tokens of a conversation, all in the loss; the tokenizer's whole encoding)."""
        arguments: dict[str, Any] = {
            "conversation": messages,
            "chat_template": self.chat_template,
            "tools": json.loads(row["tools"]) if row.get("tools") else None,
        }
        if not with_text:
            encoding = self.tokenizer.apply_chat_template(
                **arguments, **options, tokenize=True, return_dict=True
            )
            return _all_in_loss(encoding, ""), encoding
        encoding = self.tokenizer.apply_chat_template(
            **arguments,
            **options,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        text = self.tokenizer.apply_chat_template(
            **arguments,
            tokenize=False,
            add_generation_prompt=options.get("add_generation_prompt", False),
        )
        return _all_in_loss(encoding, text), encoding

    def _plain_text(self, text: str, with_text: bool) -> Tokens:
        encoding = self.tokenizer(text=text, return_offsets_mapping=with_text)
        return _all_in_loss(encoding, text if with_text else "")

    def _with_end_token(self, text: str) -> str:
        """Return a text with the end token, which counts for the loss."""
        end: str = self.tokenizer.eos_token
        return text if text.endswith(end) else text + end


def split_by_loss(
    tokens: Tokens, max_length: int, tokenizer: Any
) -> tuple[list[tuple[str, bool]], str]:
    """Return ([(text, is in the loss)] of what fits, the text that is cut off).

    Together they are the whole text.
    """
    num_fitting = min(len(tokens.ids), max_length)
    pieces: list[tuple[str, bool]] = []
    position = 0
    for is_in_loss, group in groupby(range(num_fitting), key=lambda index: tokens.loss_mask[index]):
        piece = ""
        for index in group:
            begin, end = tokens.spans[index]
            # The last token takes what is left, such as a space that the tokenizer drops.
            if index == len(tokens.ids) - 1:
                end_of_piece = len(tokens.text)
            else:
                end_of_piece = end
            piece += tokens.text[position:end_of_piece]
            position = max(position, end_of_piece)
            if begin == end:  # not part of the text, such as a token for its beginning
                piece += str(tokenizer.convert_ids_to_tokens(tokens.ids[index]))
        pieces.append((piece, is_in_loss))
    return pieces, tokens.text[position:]


def _all_in_loss(encoding: Mapping[str, Any], text: str) -> Tokens:
    ids = encoding["input_ids"]
    return Tokens(ids, [True] * len(ids), text, encoding.get("offset_mapping", ()))


def _length_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike.

    A completion begins where its prompt alone and the whole text part.
    """
    for index, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return index
    return min(len(ids), len(others))
