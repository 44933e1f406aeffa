"""Test that Ollama's template is derived from chat templates, proved, or refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from core.after_training.export.modelfile import Modelfile, num_context
from core.after_training.export.template import (
    GoTemplate,
    Messages,
    Render,
    UnknownTemplate,
    conversations,
    derive,
)
from tests.builders.paths import DEMO

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
OF_PICTURES = ("idefics3", "llava_next", "smolvlm")
"""Templates whose messages are lists of texts and pictures."""
WITHOUT_SYSTEM = ("gemma.jinja", "gemma_training.jinja")
FORGETS = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"


def render_of(template: str) -> Render:
    """Return a function that renders messages with a Jinja template."""

    def render(messages: Messages, opens_answer: bool) -> str:
        tokens: Mapping[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
        (text,), _spans = render_jinja_template(
            [list(messages)],
            chat_template=template,
            add_generation_prompt=opens_answer,
            **tokens,
        )
        return str(text).removeprefix("<s>")

    return render


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_many_families_are_derived(path: Path) -> None:
    render = render_of(path.read_text(encoding="utf-8"))
    if path.name.startswith(OF_PICTURES):
        with pytest.raises(UnknownTemplate):
            derive(render)
        return
    template = derive(render)
    assert (template.system is None) == (path.name in WITHOUT_SYSTEM)
    for messages in conversations(has_system=template.system is not None):
        assert template.render(messages) == render(messages, True)


def test_the_template_of_the_demo_reads_like_this() -> None:
    jinja = (DEMO / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    text = derive(render_of(jinja)).text()
    assert '{{ if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}' in text
    assert text.endswith('{{ "<|im_start|>assistant\\n" }}')


def test_a_template_that_changes_texts_is_refused() -> None:
    with pytest.raises(UnknownTemplate, match="leaves out a message"):
        derive(render_of(FORGETS))


def test_a_template_that_raises_is_refused() -> None:
    with pytest.raises(UnknownTemplate, match="refuses a plain conversation"):
        derive(render_of("{{ raise_exception('no') }}"))


def test_a_modelfile_keeps_the_answers_as_they_were() -> None:
    text = Modelfile("m.gguf", "T", ["<end>", 'a"b'], 4096, {"do_sample": False}).text()
    assert text.splitlines() == [
        "FROM ./m.gguf",
        'TEMPLATE """T"""',
        'PARAMETER stop "<end>"',
        'PARAMETER stop "a\\"b"',
        "PARAMETER num_ctx 4096",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER temperature 0",
    ]


def test_the_context_is_what_the_model_holds_at_most() -> None:
    assert num_context({"max_position_embeddings": 2048}, 256) == 2048
    assert num_context({"max_position_embeddings": 131072}, 8192) == 8192


def test_literals_are_written_for_go() -> None:
    template = GoTemplate(("<u>\n", "</u>"), ("<a>", "</a>"), "<a>")
    assert template.text().startswith("{{ range $i, $_ := .Messages }}")
    assert '{{ "<u>\\n" }}{{ .Content }}</u>' in template.text()
