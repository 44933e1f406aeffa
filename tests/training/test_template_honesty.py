"""Chat templates that lie about answers are refused, and those of known families are not."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from core.training.contract.row_reader import BadRow
from core.training.data.chat import ChatTemplate
from core.training.data.preferences import PreferenceEncoder
from core.training.data.tokens import Encoder
from tests.builders.chat_templates import FAMILIES, assistant, tokenizer_with, user
from tests.builders.paths import DEMO

pytestmark = pytest.mark.training
QUESTION, ANSWER = user("How far is the nearest star?"), assistant("It is four light years away.")
OTHER = assistant("Nobody knows how far it is.")
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "conversation": ("sft", {"messages": [QUESTION, ANSWER]}),
    "two turns": ("sft", {"messages": [QUESTION, ANSWER, user("Really?"), OTHER]}),
    "completion": ("sft", {"prompt": [QUESTION], "completion": [ANSWER]}),
    "preference": ("dpo", {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER]}),
    "label": ("kto", {"prompt": [QUESTION], "completion": [ANSWER], "label": True}),
}
"""Kind of row -> (stage, a row)."""
ROLE_SWAPPED = "{%- set role = 'assistant' if m.role == 'user' else 'user' %}"
HEADER = "{{- '<|im_start|>' + m.role + '\\n' }}"
BODIES: dict[str, tuple[str, str]] = {
    "roles swapped": (
        ROLE_SWAPPED + "{{- '<|im_start|>' + role + '\\n' + m.content + '<|im_end|>\\n' }}",
        "prints it as the user's message",
    ),
    "text around": (
        HEADER + "{%- if m.role == 'assistant' %}{{- 'As a helpful model I would say: ' }}"
        "{%- endif %}{{- m.content + '<|im_end|>\\n' }}",
        "adds a text to it that counts too: 'As a helpful model I would say:'",
    ),
    "text behind": (
        HEADER + "{{- m.content }}{%- if m.role == 'assistant' %}"
        "{{- ' I hope that this was helpful for you.' }}{%- endif %}{{- '<|im_end|>\\n' }}",
        "adds a text to it that counts too: 'I hope that this was helpful for you.'",
    ),
    "twice": (
        HEADER + "{{- m.content + ' ' + m.content + '<|im_end|>\\n' }}",
        "prints it more than once",
    ),
    "capitals": (HEADER + "{{- m.content | upper + '<|im_end|>\\n' }}", "prints another text in"),
    "cut": (HEADER + "{{- m.content[:9] + '<|im_end|>\\n' }}", "prints another text in"),
}
MARKED_BODIES: dict[str, tuple[str, str]] = {
    "everything": (
        "{%- generation %}" + HEADER + "{{- m.content + '<|im_end|>\\n' }}{%- endgeneration %}",
        "messages[0] (user): it counts as an answer",
    ),
    "the questions": (
        HEADER + "{%- if m.role == 'user' %}{%- generation %}{{- m.content }}{%- endgeneration %}"
        "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}",
        "messages[0] (user): it counts as an answer",
    ),
    "not the whole answer": (
        HEADER + "{%- if m.role == 'user' %}{{- m.content }}{%- else %}{{- m.content[:12] }}"
        "{%- generation %}{{- m.content[12:] }}{%- endgeneration %}{%- endif %}"
        "{{- '<|im_end|>\\n' }}",
        "leave it out, or a part of it",
    ),
    "capitals": (
        HEADER + "{%- generation %}{{- m.content | upper }}{%- endgeneration %}"
        "{{- '<|im_end|>\\n' }}",
        "prints another text in its place",
    ),
}


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "model", trust_remote_code=False)


def template_of(body: str) -> str:
    opening = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    return "{%- for m in messages %}" + body + "{%- endfor %}" + opening


def refusal(read: Callable[[dict[str, Any]], object], row: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as refused:
        read(row)
    return str(refused.value)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("lie", BODIES)
def test_a_template_that_lies_is_refused_by_name(lie: str, kind: str) -> None:
    body, reason = BODIES[lie]
    stage, row = ROWS[kind]
    template = ChatTemplate(tokenizer(), template_of(body))
    said = refusal(Encoder(template, on_answers=True, stage=stage).encode_all, row)
    assert reason in said
    assert "(assistant)" in said


@pytest.mark.parametrize("lie", MARKED_BODIES)
def test_marks_that_lie_are_refused(lie: str) -> None:
    body, reason = MARKED_BODIES[lie]
    template = ChatTemplate(tokenizer(), template_of(body))
    row = ROWS["conversation"][1]
    assert reason in refusal(Encoder(template, on_answers=True).encode, row)


def test_marks_without_the_end_of_an_answer_are_not_followed() -> None:
    marked = "{%- generation %}{{- m.content }}{%- endgeneration %}"
    text = "{%- if m.role == 'assistant' %}" + marked + "{%- else %}{{- m.content }}{%- endif %}"
    body = HEADER + text + "{{- '<|im_end|>\\n' }}"
    encoder = Encoder(ChatTemplate(tokenizer(), template_of(body)), on_answers=True)
    tokens = encoder.encode(ROWS["two turns"][1])
    pairs = zip(tokens.ids, tokens.loss_mask, strict=True)
    learnt = tokenizer().decode([token for token, counts in pairs if counts])
    assert learnt == f"{ANSWER['content']}<|im_end|>{OTHER['content']}<|im_end|>"


@pytest.mark.parametrize("lie", ["roles swapped", "twice", "capitals"])
def test_a_lie_is_refused_where_everything_counts_too(lie: str) -> None:
    body, reason = BODIES[lie]
    template = ChatTemplate(tokenizer(), template_of(body))
    row = ROWS["conversation"][1]
    assert reason in refusal(Encoder(template, on_answers=False).encode, row)


@pytest.mark.parametrize("lie", ["roles swapped", "text around", "twice"])
def test_a_template_that_lies_is_refused_for_orpo_and_cpo(lie: str) -> None:
    body, reason = BODIES[lie]
    other = tokenizer().__class__.from_pretrained(DEMO / "model")
    other.chat_template = template_of(body)
    row = ROWS["preference"][1]
    assert reason in refusal(PreferenceEncoder(other, "cpo").encode_all, row)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_known_family_is_not_refused(family: Any, kind: str) -> None:
    stage, row = ROWS[kind]
    known = tokenizer_with(family.tokens) if family.needs_tokens else tokenizer()
    template = ChatTemplate(known, family.template)
    assert Encoder(template, on_answers=True, stage=stage).encode_all(row)


@pytest.mark.parametrize("kind", ["conversation", "completion", "preference"])
def test_a_template_that_changes_some_answers_only_is_refused(kind: str) -> None:
    body = HEADER + "{{- m.content | replace('light', 'heavy') + '<|im_end|>\\n' }}"
    stage, row = ROWS[kind]
    template = ChatTemplate(tokenizer(), template_of(body))
    encoder = Encoder(template, on_answers=True, stage=stage)
    assert "prints another text in its place" in refusal(encoder.encode_all, row)


def test_a_template_that_prints_no_text_is_refused_whatever_it_marks() -> None:
    # As the templates of vision models do, which take the content of a message as parts.
    body = HEADER + "{%- generation %}{%- for part in m.content %}{{- part.text }}{%- endfor %}"
    body += "{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    template = ChatTemplate(tokenizer(), template_of(body))
    row = {"messages": [user("Hi"), assistant("Yes")]}
    assert "another text in its place" in refusal(Encoder(template, on_answers=True).encode, row)


def test_a_row_that_is_refused_with_other_words_is_not_trusted() -> None:
    known = (
        "{%- if 'star' not in messages[0].content %}{{- raise_exception('No star') }}{%- endif %}"
    )
    body = HEADER + "{{- m.content + '<|im_end|>\\n' }}"
    template = ChatTemplate(tokenizer(), known + template_of(body))
    encoder = Encoder(template, on_answers=True)
    row = ROWS["conversation"][1]
    assert "No star" in refusal(encoder.encode, row)
    assert "No star" in refusal(encoder.encode, {"messages": [user("Hi"), ANSWER]})


def test_a_template_that_wants_parts_says_so() -> None:
    body = HEADER + "{{- m.content[0].text + '<|im_end|>' }}"
    template = ChatTemplate(tokenizer(), template_of(body))
    said = refusal(Encoder(template, on_answers=True).encode, ROWS["conversation"][1])
    assert "messages[0] (user) as a list of parts" in said
