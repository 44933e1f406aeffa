"""Test that Ollama's template is derived from chat templates, proved, or refused."""

from pathlib import Path

import pytest

from core.after_training.export.ollama.modelfile import Modelfile, can_hold, num_context
from core.after_training.export.ollama.template import (
    GoTemplate,
    UnknownTemplate,
    conversations,
    derive,
)
from tests.builders.jinja_templates import OF_PICTURES, TEMPLATES, render_of
from tests.builders.modelfiles import values_of
from tests.builders.paths import DEMO

WITHOUT_SYSTEM = ("gemma.jinja", "gemma_training.jinja")
FORGETS = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"


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
        'PARAMETER stop """<end>"""',
        'PARAMETER stop """a"b"""',
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


UNSEEN = "\u00a0\u200b"
HELD = (
    "<end>",
    'a"b',
    '"',
    '""',
    "a\\nb",
    "two\nlines",
    "\n\nHuman:",
    '"\nb',
    " ends with a blank ",
    "\t",
    "",
)
NOT_HELD = ("\u200b", "a\x1b", "a\r\nb", 'quotes"""\nand more', '"""\nand more', 'a\n"""\nb')


@pytest.mark.parametrize("stop", HELD)
def test_ollama_reads_a_stop_text_as_it_stands(stop: str) -> None:
    assert can_hold(stop)
    text = Modelfile("m.gguf", "T", [stop, "<end>"], 4096).text()
    assert values_of(text, "PARAMETER stop") == [stop, "<end>"]


@pytest.mark.parametrize("stop", NOT_HELD)
def test_what_ollama_reads_otherwise_is_found(stop: str) -> None:
    assert not can_hold(stop)
    text = Modelfile("m.gguf", "T", [stop, "<end>"], 4096).text()
    assert values_of(text, "PARAMETER stop") != [stop, "<end>"]


def test_unseen_letters_are_escaped_as_ollama_drops_them() -> None:
    text = GoTemplate((f"<u>{UNSEEN}", "\U000e0001"), ("", "\x07"), "").text()
    assert r'{{ "<u>\u00a0\u200b" }}' in text
    assert r'{{ "\U000e0001" }}' in text
    assert r'{{ "\u0007" }}' in text
    assert values_of(Modelfile("m.gguf", text, [], 4096).text(), "TEMPLATE") == [text]


def test_whole_numbers_are_written_as_such() -> None:
    text = Modelfile("m.gguf", "T", [], 4096, {"top_k": 50.0, "top_p": 1.0}).text()
    assert "PARAMETER top_k 50\n" in text
    assert "PARAMETER top_p 1.0\n" in text
