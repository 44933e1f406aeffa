"""Tokens of a row and which of them count for the loss, for check, preview and training alike.

Never imports torch. tests/workers/test_preview_tokens.py compares it with the trainers' own
preparation, token by token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

from ..contract.row_columns import Row
from ..contract.stages import DEFAULT_STAGE, STAGES
from .answers import AnswerFinder, answer_mask, require_printed
from .chat import ChatTemplate, Conversation, Messages, Tools, conversations_of, length_shared
from .honesty import HonestyCheck
from .lost import LostFinder
from .refusals import naming_faults


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

    def without_text(self) -> "Tokens":
        """Return the same tokens without what was asked for to show them."""
        return replace(self, text="", spans=())

    def with_loss_from(self, begin: int) -> "Tokens":
        """Return the same tokens, of which those from an index on count for the loss."""
        return replace(self, loss_mask=[index >= begin for index in range(len(self.ids))])


@dataclass(frozen=True)
class Encoder:
    """Encoder of rows in TRL's columns."""

    template: ChatTemplate
    on_answers: bool
    """True if only the answers count for the loss."""
    stage: str = DEFAULT_STAGE

    @property
    def tokenizer(self) -> Any:
        return self.template.tokenizer

    @cached_property
    def lost_finder(self) -> LostFinder:
        """Finder of what the chat template does not print."""
        return LostFinder(self._print)

    @property
    def chat_template(self) -> str | None:
        """Template in place of the tokenizer's own."""
        return self.template.source

    def lost(self, row: Row) -> tuple[str, ...]:
        """Return what a row holds and the chat template does not print."""
        return self.lost_finder.fields_of(row)

    def encode_all(self, row: Row, with_text: bool = False) -> tuple[Tokens, ...]:
        """Return the texts of a row: one, or two of a preference, the chosen one first.

        Raises BadRow for a row that the chat template refuses or whose answers it does not show.
        """
        self.honesty.require(row)
        return self._encode_all(row, with_text)

    def encode(self, row: Row, with_text: bool = False) -> Tokens:
        """Return the tokens of a text, a conversation or a prompt with its completion.

        Raises BadRow for a row that the chat template refuses or whose answers it does not show.
        """
        self.honesty.require(row)
        return self._encode(row, with_text)

    @cached_property
    def honesty(self) -> HonestyCheck:
        """Check of what the chat template does with answers."""
        facts = STAGES[self.stage]
        has_pairs = "preference" in facts.dataset_types
        counts = (self.on_answers or has_pairs) and not facts.generates and facts.head != "score"
        read = partial(self._encode_all, with_text=True)
        return HonestyCheck(self.template, read, (counts, counts))

    def _encode_all(self, row: Row, with_text: bool) -> tuple[Tokens, ...]:
        stage = STAGES[self.stage]
        conversations = conversations_of(row)
        if stage.generates:
            return (self._prompt(row, conversations, with_text),)
        if "chosen" not in row:
            return (self._encode(row, with_text),)
        if conversations:
            texts = [self._exchange(row, each, with_text) for each in conversations]
        else:
            texts = [
                self._plain_exchange(row["prompt"], row[answer], with_text)
                for answer in ("chosen", "rejected")
            ]
        if stage.head == "score":  # the score is read at the last token
            return tuple(whole.with_loss_from(len(whole.ids) - 1) for whole, _begin in texts)
        # DPO cuts both texts at the end of the prompt that they share.
        begin = min(begin for _whole, begin in texts)
        return tuple(whole.with_loss_from(begin) for whole, _begin in texts)

    def _encode(self, row: Row, with_text: bool) -> Tokens:
        if "text" in row:
            return self._plain_text(self._with_end_token(row["text"]), with_text)
        conversations = conversations_of(row)
        if "messages" in row:
            return self._conversation(row, conversations[0], with_text)
        if not conversations:
            whole, begin = self._plain_exchange(row["prompt"], row["completion"], with_text)
        elif self._is_learnt_by_turns(row):
            return self._conversation(row, conversations[0], with_text)
        else:
            whole, begin = self._exchange(row, conversations[0], with_text)
        return whole.with_loss_from(begin) if self.on_answers else whole

    def _is_learnt_by_turns(self, row: Row) -> bool:
        """Return whether each answer of a completion is looked for, as in a whole conversation."""
        if STAGES[self.stage].loss != "likelihood":
            return False
        has_several = self.on_answers and len(row["completion"]) > 1
        return has_several or bool(row.get("trained_messages"))

    def _conversation(self, row: Row, conversation: Conversation, with_text: bool) -> Tokens:
        """Return a conversation in which the answers count that the row wants to be learnt."""
        flags = row.get("trained_messages")
        messages, tools = conversation.messages, conversation.tools
        with naming_faults(conversation, self.template):
            self.lost_finder.find(conversation).require_answers()
            if not flags and not self.on_answers:
                return self._tokens(self.template.render(messages, tools), with_text)
            if not flags and "messages" in row and self.template.marks_answers:
                return self._marked_conversation(conversation, with_text)
            num_flagged = len(row.get("messages") or row["completion"])
            first = len(messages) - num_flagged
            flagged = dict(enumerate(flags or [True] * num_flagged, start=first))
            # If everything counts, the answers that must not are looked for instead.
            indices = [index for index, counts in flagged.items() if counts == self.on_answers]
            text, spans = AnswerFinder(self.template, tools).find(messages, indices)
            tokens = self._tokens(text, with_text=True)
            found = answer_mask(tokens.text, tokens.spans, spans)
        mask = [is_found == self.on_answers for is_found in found]
        return replace(tokens if with_text else tokens.without_text(), loss_mask=mask)

    def _marked_conversation(self, conversation: Conversation, with_text: bool) -> Tokens:
        """Return a conversation in which the answers count that the chat template marks."""
        encoding = self.tokenizer.apply_chat_template(
            conversation.messages,
            chat_template=self.template.source,
            tools=conversation.tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": with_text},
        )
        text = self.template.render(conversation.messages, conversation.tools)
        require_printed(text, conversation.messages)
        tokens = _all_in_loss(encoding, text if with_text else "")
        return replace(tokens, loss_mask=[bit == 1 for bit in encoding["assistant_masks"]])

    def _prompt(self, row: Row, conversations: Sequence[Conversation], with_text: bool) -> Tokens:
        """Return the prompt of an online stage; the model generates the rest."""
        if not conversations:
            tokens = self._plain_text(row["prompt"], with_text)
        for conversation in conversations:
            with naming_faults(conversation, self.template):
                text = self.template.render(row["prompt"], conversation.tools, opens_answer=True)
            tokens = self._tokens(text, with_text)
        return tokens.with_loss_from(len(tokens.ids))

    def _exchange(
        self, row: Row, conversation: Conversation, with_text: bool
    ) -> tuple[Tokens, int]:
        """Return (a prompt with what follows it, the index at which that begins)."""
        messages, tools = conversation.messages, conversation.tools
        with naming_faults(conversation, self.template):
            self.lost_finder.find(conversation).require_answers()
            prompt = self.template.render(row["prompt"], tools, opens_answer=True)
            if self._looks_for_answers:
                text = AnswerFinder(self.template, tools).exchange(row["prompt"], messages)
            else:
                text = self.template.render(messages, tools)
            require_printed(text, messages, first=len(row["prompt"]))
        whole = self._tokens(text, with_text)
        return whole, length_shared(self._tokens(prompt).ids, whole.ids)

    def _plain_exchange(self, prompt: str, answer: str, with_text: bool) -> tuple[Tokens, int]:
        """Return (a prompt with its answer as plain text, the index at which that begins)."""
        prompt_ids = self._plain_text(prompt, with_text=False).ids
        whole = self._plain_text(prompt + self._with_end_token(answer), with_text)
        return whole, length_shared(prompt_ids, whole.ids)

    def _print(self, messages: Messages, tools: Tools) -> str:
        """Return a conversation as the trainer of the stage gets it."""
        if STAGES[self.stage].generates:
            return self.template.render(messages, tools, opens_answer=True)
        if not self._looks_for_answers:
            return self.template.render(messages, tools)
        return AnswerFinder(self.template, tools).turn(messages).text

    @cached_property
    def _looks_for_answers(self) -> bool:
        """True if answers are found by what asks for them."""
        if STAGES[self.stage].loss != "likelihood":
            return True
        return self.on_answers and not self.template.marks_answers

    def _plain_text(self, text: str, with_text: bool) -> Tokens:
        tokens = _all_in_loss(
            self.tokenizer(text=text, return_offsets_mapping=with_text), text if with_text else ""
        )
        first = self.tokenizer.bos_token_id
        if first is None or list(tokens.ids[:2]) != [first, first]:
            return tokens
        # The text was printed by a template that begins with the token already.
        return replace(
            tokens, ids=tokens.ids[1:], loss_mask=tokens.loss_mask[1:], spans=tokens.spans[1:]
        )

    def _tokens(self, text: str, with_text: bool = False) -> Tokens:
        """Return the tokens of what a chat template printed."""
        encoding = self.tokenizer(
            text=text, add_special_tokens=False, return_offsets_mapping=with_text
        )
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
