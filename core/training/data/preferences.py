"""Preferences as the trainers of ORPO and CPO read them: as text, tokenized in a way of their own.

Never imports torch. tests/workers/test_preview_preferences.py compares it with those trainers,
token by token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from ..contract.row_reader import BadRow
from ..contract.stages import STAGES
from .answers import AnswerFinder
from .chat import ChatTemplate, conversations_of, length_shared
from .honesty import HonestyCheck
from .lost import LostFinder
from .refusals import naming_faults
from .tokens import Tokens

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")


class SplitText(NamedTuple):
    """Prompt and answer in tokens."""

    tokens: Tokens
    begin: int
    """Index at which the answer begins."""


@dataclass(frozen=True)
class PreferenceEncoder:
    """Encoder of preferences, in place of an Encoder."""

    tokenizer: Any
    stage: str
    chat_template: str | None = None
    on_answers: bool = True

    @cached_property
    def template(self) -> ChatTemplate:
        """Chat template of the tokenizer."""
        return ChatTemplate(self.tokenizer)

    @cached_property
    def lost_finder(self) -> LostFinder:
        """Finder of what the chat template does not print."""
        return LostFinder(self.template.render)

    def lost(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what a row holds and the chat template does not print."""
        return self.lost_finder.fields_of(row)

    def encode_all(self, row: Mapping[str, Any], with_text: bool = False) -> tuple[Tokens, Tokens]:
        """Return the chosen and the rejected text.

        ORPO also applies the SFT loss to the chosen text, prompt included. Raises BadRow for texts
        that those trainers cannot split, and for a row that the chat template refuses.
        """
        self.honesty.require(row)
        return self._encode_all(row, with_text)

    @cached_property
    def honesty(self) -> HonestyCheck:
        """Check of what the chat template does with answers."""
        learns_prompt = STAGES[self.stage].learns_chosen_prompt
        read = partial(self._encode_all, with_text=True)
        return HonestyCheck(self.template, read, (not learns_prompt, True))

    def _encode_all(self, row: Mapping[str, Any], with_text: bool) -> tuple[Tokens, Tokens]:
        chosen, rejected = self.split(row, with_text)
        begin = 0 if STAGES[self.stage].learns_chosen_prompt else chosen.begin
        return chosen.tokens.with_loss_from(begin), rejected.tokens.with_loss_from(rejected.begin)

    def prompt_length(self, row: Mapping[str, Any]) -> int:
        """Return the number of tokens before the answers; the larger one if they differ."""
        return max(text.begin for text in self.split(row))

    def split(self, row: Mapping[str, Any], with_text: bool = False) -> tuple[SplitText, SplitText]:
        """Return the chosen and the rejected text, each split into prompt and answer."""
        text = self.text(row)
        chosen = self._split_text(text["prompt"], text["chosen"], with_text)
        rejected = self._split_text(text["prompt"], text["rejected"], with_text)
        chosen_prompt = chosen.tokens.ids[: chosen.begin]
        rejected_prompt = rejected.tokens.ids[: rejected.begin]
        # The trainers tolerate one different token, where prompt and answer merge.
        pairs = zip(chosen_prompt, rejected_prompt, strict=False)
        if sum(one != other for one, other in pairs) > 1:
            raise BadRow("its prompt has other tokens before chosen than before rejected")
        return self._with_special_tokens(chosen), self._with_special_tokens(rejected)

    def text(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return a preference as text. Raises BadRow for a row that the chat template refuses.

        The trainers of ORPO and CPO would do it themselves, but would leave out the tools, and a
        system text that the template prints in another way once an answer follows.
        """
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return {name: row[name] for name in PREFERENCE_COLUMNS}
        printed = []
        for conversation in conversations_of(row):
            finder = AnswerFinder(self.template, conversation.tools)
            with naming_faults(conversation, self.template):
                self.lost_finder.find(conversation).require_answers()
                asked = self.template.render(prompt, conversation.tools, opens_answer=True)
                printed.append(finder.exchange(prompt, conversation.messages))
        # The prompt ends where the first of both texts departs from it.
        begin = min(length_shared(asked, text) for text in printed)
        chosen, rejected = (
            _up_to_end_token(text[begin:], self.tokenizer.eos_token) for text in printed
        )
        return {"prompt": asked[:begin], "chosen": chosen, "rejected": rejected}

    def _split_text(self, prompt: str, answer: str, with_text: bool) -> SplitText:
        whole = self.tokenizer(
            prompt + answer, add_special_tokens=False, return_offsets_mapping=with_text
        )
        ids = whole["input_ids"]
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(ids) < len(prompt_ids):
            raise BadRow("its prompt has more tokens than prompt and answer together")
        begin = len(prompt_ids)
        if ids[:begin] != prompt_ids:
            begin -= 1  # the last token of the prompt merges with the answer
        text = prompt + answer if with_text else ""
        tokens = Tokens(ids, [True] * len(ids), text, whole.get("offset_mapping", ()))
        return SplitText(tokens, begin)

    def _with_special_tokens(self, split: SplitText) -> SplitText:
        """Add the tokens for the beginning and the end, unless the text has them."""
        tokens, begin = split
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        end_of_text = len(tokens.text)
        if first is not None and (begin == 0 or tokens.ids[0] != first):
            tokens = _insert(tokens, 0, first, 0)
            begin += 1
        if len(tokens.ids) == begin or tokens.ids[-1] != last:
            tokens = _insert(tokens, len(tokens.ids), last, end_of_text)
        return SplitText(tokens, begin)


def _up_to_end_token(text: str, end: str) -> str:
    """Remove white space that a template puts behind its end token.

    Otherwise the trainer would add a second end token there.
    """
    stripped = text.rstrip()
    return stripped if stripped.endswith(end) else text


def _insert(tokens: Tokens, index: int, id: int, place: int) -> Tokens:
    """Return the tokens with one more at `index`, which stands at a `place` in the text."""
    ids, spans = list(tokens.ids), list(tokens.spans)
    ids.insert(index, id)
    if tokens.text:
        spans.insert(index, (place, place))
    return replace(tokens, ids=ids, loss_mask=[True] * len(ids), spans=spans)
