"""Chat template of a model: conversations as text, and the form of its turns. Counts no tokens."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Message = Mapping[str, Any]
Messages = Sequence[Message]
Tools = Sequence[Mapping[str, Any]] | None
Print = Callable[[Messages], str]
"""Return messages as text."""

ANSWER_COLUMNS = ("completion", "chosen", "rejected")
"""Columns that hold what follows a prompt."""
PLACEHOLDER = "qzxPlaceholderxzq"
"""Text that no row holds. Put in place of another, it shows where that is printed."""
WRITTEN_ENDS = r"<\|?[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|</s>|<end_of_turn>"
"""Ends of turns as templates write them, which a tokenizer may hold as plain text."""
WRITTEN_MARKERS = WRITTEN_ENDS + r"|</?[A-Za-z][A-Za-z0-9_]*>|\[/?[A-Z][A-Z_]*\]"
"""Words that structure a conversation, the ends of turns among them."""


@dataclass(frozen=True)
class Conversation:
    """Conversation that a row holds."""

    messages: Messages
    names: Sequence[str]
    """Place of each message in the row, such as `prompt[0]`."""
    tools: Tools = None


def conversations_of(row: Mapping[str, Any]) -> tuple[Conversation, ...]:
    """Return the conversations of a row in TRL's columns: two of a preference, the chosen one
    first; none of plain texts."""
    tools = json.loads(row["tools"]) if row.get("tools") else None
    if "messages" in row:
        return (Conversation(row["messages"], _names("messages", row), tools),)
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        return ()
    names = _names("prompt", row)
    found = [
        Conversation([*prompt, *row[column]], [*names, *_names(column, row)], tools)
        for column in ANSWER_COLUMNS
        if column in row
    ]
    return tuple(found) or (Conversation(prompt, names, tools),)


def _names(column: str, row: Mapping[str, Any]) -> list[str]:
    return [f"{column}[{index}]" for index in range(len(row[column]))]


@dataclass(frozen=True)
class TurnShape:
    """Text that a template prints around an answer; empty if it refuses a plain conversation."""

    opening: str = ""
    """What asks for an answer, added by `add_generation_prompt`."""
    kept_opening: str = ""
    """As much of it as stays when the answer follows."""
    header: str = ""
    """Between that and the text of the answer."""
    end: str = ""
    """Behind the text of an answer, without the white space around it."""


@dataclass(frozen=True)
class ChatTemplate:
    """Chat template of a tokenizer, or another one in its place."""

    tokenizer: Any
    source: str | None = None
    """Template in place of the tokenizer's own."""

    @cached_property
    def marks_answers(self) -> bool:
        """True if the template itself says where answers begin and end.

        Marks that leave out the token at the end of an answer are no use: the model would not learn
        to stop.
        """
        from trl.chat_template_utils import has_generation_markers

        template = self.source or self.tokenizer.chat_template
        if template is None or not has_generation_markers(template):
            return False
        return not self._marks_leave_out_ends()

    def _marks_leave_out_ends(self) -> bool:
        """Return whether the marks hold an answer, but not the token that ends it."""
        end = self.turn_shape.end
        if not end or not self.ends.match(end):
            return False
        encoding = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PLACEHOLDER}],
            chat_template=self.source,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        pairs = zip(encoding["input_ids"], encoding["assistant_masks"], strict=True)
        counted = self.tokenizer.decode([token for token, bit in pairs if bit])
        return PLACEHOLDER in counted and not self.ends.search(counted)

    @cached_property
    def markers(self) -> re.Pattern[str]:
        """Pattern of the tokens and words that structure a conversation, such as <|im_start|>."""
        return _pattern(self.tokenizer.get_added_vocab(), WRITTEN_MARKERS)

    @cached_property
    def ends(self) -> re.Pattern[str]:
        """Pattern of the tokens and words that may end a turn, such as <|im_end|>."""
        return _pattern(self.tokenizer.all_special_tokens, WRITTEN_ENDS)

    @cached_property
    def turn_shape(self) -> TurnShape:
        """Text that the template prints around a plain answer."""
        question = {"role": "user", "content": "Hi"}
        answer = {"role": "assistant", "content": PLACEHOLDER}
        try:
            silent = self.render([question])
            prompt = self.render([question], opens_answer=True)
            whole = self.render([question, answer])
        except Exception:  # a template may raise anything
            return TurnShape()
        begin, kept = length_shared(silent, prompt), length_shared(prompt, whole)
        if kept < begin or whole.count(PLACEHOLDER) != 1:
            return TurnShape()
        header, end = whole[kept:].split(PLACEHOLDER)
        return TurnShape(prompt[begin:], prompt[begin:kept], header, end.strip())

    def render(self, messages: Messages, tools: Tools = None, opens_answer: bool = False) -> str:
        """Return messages as text, beside the tools that they may call.

        `opens_answer` adds what asks the model for an answer. Raises what the template raises.
        """
        text = self._apply(messages, tools, opens_answer)
        if opens_answer or not messages or messages[-1]["role"] != "assistant":
            return text
        return text + (self._end_of_call if messages[-1].get("tool_calls") else self._end_of_answer)

    def _apply(self, messages: Messages, tools: Tools = None, opens_answer: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.source,
            tools=tools or None,
            add_generation_prompt=opens_answer,
            tokenize=False,
        )
        return text

    @cached_property
    def _end_of_answer(self) -> str:
        """Token that ends an answer and stands in the next turn only, as of GLM; "" if none does.

        Behind a last answer the template does not print it, but the model must learn to stop there.
        """
        answer = {"role": "assistant", "content": PLACEHOLDER}
        return self._token_between(answer, {"role": "user", "content": "Hi"})

    @cached_property
    def _end_of_call(self) -> str:
        """Return the same for an answer that calls a tool."""
        call = {"type": "function", "function": {"name": PLACEHOLDER, "arguments": {}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return self._token_between(answer, {"role": "tool", "name": PLACEHOLDER, "content": "Hi"})

    def _token_between(self, answer: Message, following: Message) -> str:
        """Return the special token with which a turn begins behind an answer that none ends."""
        messages = [{"role": "user", "content": "Hi"}, answer]
        try:
            whole = self._apply(messages)
            _before, found, behind = whole.rpartition(PLACEHOLDER)
            if not found or self.ends.search(behind):
                return ""  # as most do, so that the longer conversation is not rendered
            longer = self._apply([*messages, following])
        except Exception:  # a template may raise anything
            return ""
        if not longer.startswith(whole):
            return ""
        begin = longer[len(whole) :]
        for token in self.tokenizer.all_special_tokens:
            if token.strip() and begin.startswith(token):
                return str(token)
        return ""


def _pattern(words: Iterable[str], written: str) -> re.Pattern[str]:
    """Return a pattern of these words, the longest first, and of others."""
    escaped = [re.escape(word) for word in sorted(words, key=len, reverse=True) if word.strip()]
    return re.compile("|".join([*escaped, written]))


def length_shared(ids: Sequence[Any], others: Sequence[Any]) -> int:
    """Return how many tokens or characters two sequences begin with alike."""
    shared, limit = 0, min(len(ids), len(others))
    while shared < limit:  # bisection: comparing slices is much faster than single items
        middle = (shared + limit + 1) // 2
        if ids[shared:middle] == others[shared:middle]:
            shared = middle
        else:
            limit = middle - 1
    return shared
