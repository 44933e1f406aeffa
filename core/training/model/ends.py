"""Ends of an answer: every token at which a model stops, as its tokenizer and template say."""

from typing import Any

from ..data.chat import ChatTemplate


def stop_at_all_ends(model: Any, tokenizer: Any) -> None:
    """Let a model stop at the end token of its tokenizer and at what ends a turn of its template.

    The settings of generation hold both afterwards: samples and the result use them.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:  # a reward model writes no answers
        return
    known = settings.eos_token_id
    ends = list(known) if isinstance(known, list) else [known]
    ends += [tokenizer.eos_token_id, turn_end_id(tokenizer)]
    # A file may name a token that its tokenizer does not have.
    num_tokens = len(tokenizer)
    known_ends = [each for each in ends if each is not None and 0 <= each < num_tokens]
    distinct = list(dict.fromkeys(known_ends))
    if len(distinct) > 1:
        settings.eos_token_id = distinct
        names = ", ".join(tokenizer.convert_ids_to_tokens(distinct))
        print(f"an answer ends at any of {names}")
    elif distinct:
        settings.eos_token_id = distinct[0]


def turn_end_id(tokenizer: Any) -> int | None:
    """Return the token that ends a turn in the chat template; None if it is no single token."""
    if not tokenizer.chat_template:
        return None
    end = ChatTemplate(tokenizer).turn_shape.end
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if not ids or ids[0] not in tokenizer.added_tokens_decoder:
        return None
    return int(ids[0])
