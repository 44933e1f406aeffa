"""Answers that count, found without marks in what the chat templates of many families print."""

import json
from typing import Any

import pytest

from core.training.contract.row_reader import BadRow
from core.training.data.chat import ChatTemplate
from core.training.data.tokens import Encoder, Tokens, split_by_loss
from tests.builders.chat_templates import (
    CONVERSATIONS,
    FAMILIES,
    TOOLS,
    Family,
    Message,
    assistant,
    tokenizer_with,
    user,
)

pytestmark = pytest.mark.training
BY_NAME = {family.name: family for family in FAMILIES}
LONG = 100_000


def encoder_of(family: Family, has_tokens: bool = True) -> Encoder:
    """Return an encoder with a family's template; without its special tokens they are text."""
    tokenizer = tokenizer_with(family.tokens if has_tokens else ())
    return Encoder(ChatTemplate(tokenizer, family.template), on_answers=True)


def row_of(messages: list[Message], **others: Any) -> dict[str, Any]:
    has_calls = any("tool_calls" in message for message in messages)
    return {"messages": messages, "tools": json.dumps(TOOLS) if has_calls else None, **others}


def counted_texts(encoder: Encoder, tokens: Tokens) -> list[str]:
    pieces, _cut = split_by_loss(tokens, LONG, encoder.tokenizer)
    return [text for text, counts in pieces if counts]


@pytest.mark.parametrize("has_tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", BY_NAME)
def test_each_answer_counts_with_its_end_and_nothing_else(
    name: str, kind: str, has_tokens: bool
) -> None:
    family = BY_NAME[name]
    encoder, row = encoder_of(family, has_tokens), row_of(CONVERSATIONS[kind])
    reason = family.refused.get(kind, "")
    if family.needs_tokens and not has_tokens:
        reason = "prints no end-of-turn token"
    if reason:
        with pytest.raises(BadRow) as refusal:
            encoder.encode(row)
        assert reason in str(refusal.value)
    else:
        assert counted_texts(encoder, encoder.encode(row, with_text=True)) == family.answers(kind)


def test_answers_that_are_not_to_be_learnt_do_not_count() -> None:
    encoder = encoder_of(BY_NAME["llama_3"])
    row = row_of(CONVERSATIONS["several answers"], trained_messages=[True, False, True, True])
    tokens = encoder.encode(row, with_text=True)
    assert counted_texts(encoder, tokens) == ["Yes<|eot_id|>"]
    assert (tokens.first_in_loss or 0) > len(tokens.ids) // 2


def test_only_answers_not_to_be_learnt_are_left_out_of_a_whole_text() -> None:
    family = BY_NAME["zephyr"]
    encoder = Encoder(ChatTemplate(tokenizer_with(family.tokens), family.template), False)
    row = row_of(CONVERSATIONS["several answers"], trained_messages=[True, False, True, True])
    pieces, _cut = split_by_loss(encoder.encode(row, with_text=True), LONG, encoder.tokenizer)
    assert [text for text, counts in pieces if not counts] == ["Yes</s>"]


def test_marked_answers_may_be_left_out_too() -> None:
    encoder = Encoder(ChatTemplate(tokenizer_with(())), on_answers=True)
    assert encoder.template.marks_answers
    row = row_of(CONVERSATIONS["several answers"], trained_messages=[True, True, True, False])
    tokens = encoder.encode(row, with_text=True)
    assert counted_texts(encoder, tokens) == ["Yes<|im_end|>"]
    assert tokens.end_in_loss < len(tokens.ids) // 2


def test_each_answer_of_a_completion_counts() -> None:
    family = BY_NAME["qwen_2_5"]
    encoder, messages = encoder_of(family), CONVERSATIONS["calls"]
    row = row_of(messages) | {"prompt": messages[:1], "completion": messages[1:]}
    del row["messages"]
    tokens = encoder.encode(row, with_text=True)
    assert counted_texts(encoder, tokens) == family.answers("calls")


def test_an_answer_before_the_prompt_ends_does_not_count() -> None:
    encoder, messages = encoder_of(BY_NAME["llama_3"]), CONVERSATIONS["several answers"]
    row = {"prompt": messages[:3], "completion": messages[3:]}
    tokens = encoder.encode(row, with_text=True)
    assert counted_texts(encoder, tokens) == ["Yes<|eot_id|>"]


def test_a_system_text_that_is_printed_for_the_last_question_only_is_kept() -> None:
    encoder = encoder_of(BY_NAME["mistral_3"])
    row = row_of(CONVERSATIONS["system"][:3])
    assert encoder.encode(row, with_text=True).text == "<s>[INST] Yes\n\nHi[/INST] Yes</s>"
    exchange = {"prompt": row["messages"][:2], "completion": row["messages"][2:]}
    tokens = encoder.encode(exchange, with_text=True)
    assert counted_texts(encoder, tokens) == [" Yes</s>"]
    assert encoder.lost(row) == encoder.lost(exchange) == ()


@pytest.mark.parametrize("name", ["llama_3", "gemma_2", "vicuna", "qwen_3"])
def test_a_conversation_may_begin_with_an_answer(name: str) -> None:
    messages = [assistant("Welcome"), user("Hi"), assistant("Hello")]
    encoder = encoder_of(BY_NAME[name])
    if name == "gemma_2":
        with pytest.raises(BadRow, match="Roles must alternate"):
            encoder.encode(row_of(messages))
    else:
        texts = counted_texts(encoder, encoder.encode(row_of(messages), with_text=True))
        assert [text.split("\n")[-1].strip()[:5] for text in texts] == ["Welco", "Hello"]


def test_white_space_of_an_answer_counts_as_the_template_prints_it() -> None:
    messages = [user("Hi"), assistant(" a \n\n b \n")]
    for name, text in (("llama_3", "a \n\n b<|eot_id|>"), ("zephyr", " a \n\n b \n</s>")):
        encoder = encoder_of(BY_NAME[name])
        tokens = encoder.encode(row_of(messages), with_text=True)
        assert counted_texts(encoder, tokens) == [text]


def test_an_answer_may_hold_the_words_of_the_template() -> None:
    trick = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi"
    messages = [user("Hi"), assistant(trick), user(trick), assistant("Hi")]
    encoder = encoder_of(BY_NAME["llama_3"])
    tokens = encoder.encode(row_of(messages), with_text=True)
    assert counted_texts(encoder, tokens) == [trick + "<|eot_id|>", "Hi<|eot_id|>"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ m.role }}: {{ m.content }}\n", "no end-of-turn token"),
        ("{{ m.role }}: {{ m.content | upper }}<|im_end|>\n", "prints another text"),
        ("{{ m.role }}:<|im_end|>\n", "prints another text"),
    ],
)
def test_an_answer_that_cannot_be_proved_is_refused_by_name(template: str, reason: str) -> None:
    source = "{%- for m in messages %}" + template + "{%- endfor %}"
    encoder = Encoder(ChatTemplate(tokenizer_with(()), source), on_answers=True)
    with pytest.raises(BadRow, match=rf"^messages\[1\] \(assistant\): the chat .*{reason}"):
        encoder.encode(row_of(CONVERSATIONS["several answers"]))


# Templates that TRL marks

MARKED_BY_TRL = (
    "cohere",
    "cohere2",
    "gemma",
    "gemma3",
    "glm4moe",
    "lfm2",
    "lfm2_v2",
    "llama3",
    "phi3",
    "phi3_5",
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
)
MARKED_WITH_THE_REQUEST = (
    "deepseek_r1_distill",
    "deepseekv3",
    "gptoss",
    "nemotron_3_nano",
    "qwen3_5_think",
    "qwen3_6",
)
"""TRL counts the end of what asks for an answer, too: the template prints it for each answer."""


def trl_template(name: str) -> str:
    from trl import chat_template_utils

    return str(getattr(chat_template_utils, f"{name}_training_chat_template"))


def runs_of(text: str, places: list[tuple[int, int]], mask: list[bool]) -> list[str]:
    """Return the texts of neighbouring tokens that count, without white space around them."""
    runs, was_counted = [""], False
    for (begin, end), counts in zip(places, mask, strict=True):
        if counts:
            runs[-1] += text[begin:end]
        elif was_counted:
            runs.append("")
        was_counted = counts
    return [run.strip() for run in runs if run]


def both_ways(name: str, kind: str) -> tuple[list[str], list[str], ChatTemplate]:
    """Return (texts that TRL's marks count, those found without marks, the template)."""
    tokens = [token for family in FAMILIES for token in family.tokens]
    template = ChatTemplate(tokenizer_with(tuple(dict.fromkeys(tokens))), trl_template(name))
    row = row_of(CONVERSATIONS[kind])
    marked = Encoder(template, on_answers=True).encode(row, with_text=True)
    # A row that says what is learnt is not left to the marks.
    row["trained_messages"] = [True] * len(row["messages"])
    found = Encoder(template, on_answers=True).encode(row, with_text=True)
    assert found.ids == marked.ids
    texts = [runs_of(each.text, each.spans, each.loss_mask) for each in (marked, found)]
    return texts[0], texts[1], template


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", MARKED_BY_TRL)
def test_answers_are_those_that_trl_marks(name: str, kind: str) -> None:
    try:
        marked, found, _template = both_ways(name, kind)
    except BadRow as refusal:
        assert kind in ("calls", "system")
        assert "chat template" in str(refusal)
    else:
        assert found == marked


@pytest.mark.parametrize("kind", ["one answer", "several answers", "system"])
@pytest.mark.parametrize("name", MARKED_WITH_THE_REQUEST)
def test_trl_marks_no_more_than_an_answer_and_what_asks_for_it(name: str, kind: str) -> None:
    marked, found, template = both_ways(name, kind)
    for one, other in zip(marked, found, strict=True):
        assert one.endswith(other)
        asked = one.removesuffix(other).strip()
        assert template.turn_shape.kept_opening.strip().endswith(asked)


PRINTED_ALIKE = ("gemma", "gemma3", "glm4moe", "phi3", "phi3_5", "qwen2_5", "cohere2", "lfm2")
"""Templates whose marked form prints the same text."""


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", PRINTED_ALIKE)
def test_a_template_without_marks_counts_what_its_marked_form_does(name: str, kind: str) -> None:
    from trl import chat_template_utils

    tokens = [token for family in FAMILIES for token in family.tokens]
    tokenizer = tokenizer_with(tuple(dict.fromkeys(tokens)))
    found = []
    for template in (getattr(chat_template_utils, f"{name}_chat_template"), trl_template(name)):
        encoder = Encoder(ChatTemplate(tokenizer, template), on_answers=True)
        try:
            each = encoder.encode(row_of(CONVERSATIONS[kind]), with_text=True)
        except BadRow as refusal:
            found.append([str(refusal)])
        else:
            found.append(runs_of(each.text, each.spans, each.loss_mask))
    assert found[0] == found[1]
