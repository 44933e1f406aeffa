"""Text of an answer while its tokens are written. Generates none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

UNFINISHED = "\ufffd"
"""End of a text whose last character lacks tokens."""
SHOWN_TOKENS = frozenset(
    [
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "[THINK]",
        "[/THINK]",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<|python_tag|>",
    ]
)
"""Special tokens that say what a part of an answer is: a thought, or a tool call."""


class PieceStreamer(BaseStreamer):
    """Passes on the text of each token as soon as it is whole.

    A character may take several tokens, and some tokenizers print a token by what is before it. So
    the last tokens are decoded with those before them.
    """

    def __init__(self, tokenizer: Any, on_piece: Callable[[str], None]) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=False)
        self._hidden_ids = _hidden_ids(tokenizer)
        self._on_piece = on_piece
        self._ids: list[int] = []
        self._first = 0
        """First token that is decoded."""
        self._num_sent = 0
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then token after token."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._ids += [each for each in value.flatten().tolist() if each not in self._hidden_ids]
        before = self._decode(self._ids[self._first : self._num_sent])
        text = self._decode(self._ids[self._first :])
        if len(text) > len(before) and not text.endswith(UNFINISHED):
            self._on_piece(text[len(before) :])
            self._first, self._num_sent = self._num_sent, len(self._ids)

    def end(self) -> None:
        """Pass on what is left, such as half a character."""
        before = self._decode(self._ids[self._first : self._num_sent])
        rest = self._decode(self._ids[self._first :])[len(before) :]
        if rest:
            self._on_piece(rest)


def _hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Return the special tokens that are no part of an answer, such as its end."""
    added = tokenizer.added_tokens_decoder.items()
    special = {token_id for token_id, token in added if token.special}
    special.update(tokenizer.all_special_ids)
    shown = {token_id for token_id, token in added if str(token) in SHOWN_TOKENS}
    return frozenset(special - shown)
