"""Preferences in the chat templates of many families: the prompt is seen whole, answers count."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from core.training.data.chat import ChatTemplate
from core.training.data.preferences import PreferenceEncoder
from core.training.data.tokens import Encoder, Tokens, split_by_loss
from tests.builders.chat_templates import (
    CALL,
    FAMILIES,
    TOOLS,
    Family,
    assistant,
    tokenizer_with,
    user,
)

pytestmark = pytest.mark.training
LONG = 100_000
SYSTEM = "Speak like a judge"
FIRST, SECOND = "Is tea legal", "And ice"
BETTER, WORSE = "It is", "Who knows"
PROMPT = [
    {"role": "system", "content": SYSTEM},
    user(FIRST),
    assistant("Yes"),
    user(SECOND),
]
NO_SYSTEM = [family.name for family in FAMILIES if "system" in family.refused]
BY_NAME = {family.name: family for family in FAMILIES if family.name not in NO_SYSTEM}
PRINTS_CALLS = ("mistral_3", "qwen_2_5", "llama_3_1", "granite_3")


def row_of(prompt: list[dict[str, Any]], chosen: list[dict[str, Any]]) -> dict[str, Any]:
    has_calls = any("tool_calls" in message for message in chosen)
    tools = json.dumps(TOOLS) if has_calls else None
    return {"prompt": prompt, "chosen": chosen, "rejected": [assistant(WORSE)], "tools": tools}


def encoders(family: Family) -> Mapping[str, Encoder | PreferenceEncoder]:
    tokenizer = tokenizer_with(family.tokens)
    tokenizer.chat_template = family.template
    template = ChatTemplate(tokenizer)
    stages = {stage: Encoder(template, True, stage) for stage in ("dpo", "reward", "kto")}
    return {**stages, "cpo": PreferenceEncoder(tokenizer, "cpo")}


def texts_of(encoder: Any, tokens: Tokens) -> tuple[str, str]:
    """Return (the text that does not count, the text that does)."""
    pieces, _cut = split_by_loss(tokens, LONG, encoder.tokenizer)
    seen = "".join(text for text, counts in pieces if not counts)
    return seen, "".join(text for text, counts in pieces if counts)


@pytest.mark.parametrize("stage", ["dpo", "cpo"])
@pytest.mark.parametrize("name", BY_NAME)
def test_the_prompt_is_seen_whole_and_answers_alone_count(name: str, stage: str) -> None:
    encoder = encoders(BY_NAME[name])[stage]
    found = encoder.encode_all(row_of(PROMPT, [assistant(BETTER)]), with_text=True)
    for tokens, answer in zip(found, (BETTER, WORSE), strict=True):
        seen, counted = texts_of(encoder, tokens)
        assert [seen.count(text) for text in (SYSTEM, FIRST, SECOND)] == [1, 1, 1]
        assert answer in counted
        assert SECOND not in counted


@pytest.mark.parametrize("name", BY_NAME)
def test_a_score_is_read_of_a_text_with_its_system_text(name: str) -> None:
    encoder = encoders(BY_NAME[name])["reward"]
    chosen, _rejected = encoder.encode_all(row_of(PROMPT, [assistant(BETTER)]), with_text=True)
    assert SYSTEM in chosen.text


@pytest.mark.parametrize("name", BY_NAME)
def test_a_verdict_is_on_the_answer_alone(name: str) -> None:
    encoder = encoders(BY_NAME[name])["kto"]
    row = {"prompt": PROMPT, "completion": [assistant(BETTER)], "label": True, "tools": None}
    (tokens,) = encoder.encode_all(row, with_text=True)
    seen, counted = texts_of(encoder, tokens)
    assert SYSTEM in seen
    assert BETTER in counted
    assert SECOND not in counted


@pytest.mark.parametrize("name", PRINTS_CALLS)
def test_an_answer_of_several_messages_follows_its_prompt(name: str) -> None:
    encoder = encoders(BY_NAME[name])["dpo"]
    answer = [
        assistant("", tool_calls=[CALL | {"id": "call12345"}]),
        {"role": "tool", "name": "lamp", "content": "done", "tool_call_id": "call12345"},
        assistant(BETTER),
    ]
    prompt = [{"role": "system", "content": SYSTEM}, user(SECOND)]
    chosen, _rejected = encoder.encode_all(row_of(prompt, answer), with_text=True)
    seen, counted = texts_of(encoder, chosen)
    assert SECOND in seen
    assert "done" in counted
