"""Preferences as the trainers of ORPO and CPO take them: as text, divided into tokens in a way of their own.

Never imports torch. tests/test_preview_preferences.py holds it against those trainers, token by token.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..contract.row_reader import BadRow
from ..contract.stages import STAGES
from .tokens import Tokens, from_index

COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Comparer:
    """Turns preferences into tokens, in the place of an Encoder."""

    tokenizer: Any
    stage: str = "cpo"
    chat_template: str | None = None
    on_answers: bool = True

    def encode_all(self, row: Mapping[str, Any], with_text: bool = False) -> tuple[Tokens, Tokens]:
        """The chosen and the rejected text. ORPO learns the chosen one by heart, its question included.

        Raises BadRow for texts that those trainers cannot divide, and what the chat template raises.
        """
        (chosen, begin), (rejected, other) = self.divided(row, with_text)
        if STAGES[self.stage].learns_chosen_prompt:
            begin = 0
        return from_index(chosen, begin), from_index(rejected, other)

    def prompt_length(self, row: Mapping[str, Any]) -> int:
        """Tokens before the answers; those before the later one, should they differ."""
        return max(begin for _tokens, begin in self.divided(row))

    def divided(
        self, row: Mapping[str, Any], with_text: bool = False
    ) -> tuple[tuple[Tokens, int], tuple[Tokens, int]]:
        """Both texts, each with the index at which its answer begins."""
        text = text_of(row, self.tokenizer)
        chosen, rejected = (
            self._divide(text["prompt"], text[name], with_text) for name in COLUMNS[1:]
        )
        prompts = zip(chosen[0].ids[: chosen[1]], rejected[0].ids[: rejected[1]], strict=False)
        if sum(one != other for one, other in prompts) > 1:
            raise BadRow("its prompt has other tokens before chosen than before rejected")
        return self._completed(*chosen), self._completed(*rejected)

    def _divide(self, prompt: str, answer: str, with_text: bool) -> tuple[Tokens, int]:
        whole = self.tokenizer(
            prompt + answer, add_special_tokens=False, return_offsets_mapping=with_text
        )
        ids, alone = (
            whole["input_ids"],
            self.tokenizer(prompt, add_special_tokens=False)["input_ids"],
        )
        if len(ids) < len(alone):
            raise BadRow("its prompt has more tokens than prompt and answer together")
        begin = len(alone) - (
            alone != ids[: len(alone)]
        )  # one token less if the answer changes the last one
        text = prompt + answer if with_text else ""
        return Tokens(ids, [True] * len(ids), text, whole.get("offset_mapping", ())), begin

    def _completed(self, tokens: Tokens, begin: int) -> tuple[Tokens, int]:
        """With the tokens for the beginning and the end, unless the text brings them."""
        first, last, place = (
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            len(tokens.text),
        )
        if first is not None and (begin == 0 or tokens.ids[0] != first):
            tokens, begin = _with(tokens, 0, first, 0), begin + 1
        if len(tokens.ids) == begin or tokens.ids[-1] != last:
            tokens = _with(tokens, len(tokens.ids), last, place)
        return tokens, begin


def text_of(row: Mapping[str, Any], tokenizer: Any) -> dict[str, str]:
    """A preference as text, tools included, which those trainers would forget. Raises what the chat template raises."""
    from trl.data_utils import apply_chat_template

    columns = {name: row[name] for name in COLUMNS}
    if isinstance(row["prompt"], str):
        return columns
    text = apply_chat_template(
        columns, tokenizer, tools=json.loads(row["tools"]) if row.get("tools") else None
    )
    return {
        name: value if name == "prompt" else _ended(value, tokenizer.eos_token)
        for name, value in text.items()
    }


def _ended(text: str, end: str) -> str:
    """An answer without what a template puts behind its end token: the trainer would put a second one there."""
    bare = text.rstrip()
    return bare if bare.endswith(end) else text


def _with(tokens: Tokens, index: int, id: int, place: int) -> Tokens:
    """With one more token, which stands nowhere in the text."""
    ids, spans = list(tokens.ids), list(tokens.spans)
    ids.insert(index, id)
    if tokens.text:
        spans.insert(index, (place, place))
    return replace(tokens, ids=ids, counts=[True] * len(ids), spans=spans)
