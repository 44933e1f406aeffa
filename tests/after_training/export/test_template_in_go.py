"""Test that Go's own template engine prints what was proved by our simulation of it."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.after_training.export.ollama.template import (
    GoTemplate,
    Messages,
    UnknownTemplate,
    conversations,
    derive,
)
from tests.builders.jinja_templates import OF_PICTURES, TEMPLATES, render_of
from tests.builders.paths import DEMO, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="needs Go (apt install golang-go)"),
]
PROGRAM = ROOT / "tests" / "data" / "go_template" / "main.go"
ODD = GoTemplate(
    ('\u00a0<u>\u200b "q" \\\\ {{ x }}`', "\n\U0001f9f5\U000e0001\x07"),
    ("<｜a▁b｜>", "\r\n\t"),
    "</a> ",
    ("\x1b[", "]\u2028"),
    default="{{",
)
IN_QUESTION = GoTemplate(("<u>", "</u>"), ("<a>", "</a>"), "<a>", ("<s> ", "\n"), True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled program."""
    folder = tmp_path_factory.mktemp("go")
    command = ["go", "build", "-o", str(folder / "fill"), str(PROGRAM)]
    own = {"GOCACHE": str(folder / "cache"), "GOFLAGS": "", "GO111MODULE": "off"}
    subprocess.run(command, check=True, env=os.environ | own)
    return folder / "fill"


def filled(program: Path, template: GoTemplate, asked: Sequence[Messages]) -> list[str]:
    """Return what Go makes of a template and several conversations."""
    cases = [{"Template": template.text(), "Messages": messages} for messages in asked]
    done = subprocess.run(
        [str(program)], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    texts: list[str] = json.loads(done.stdout)
    return texts


@pytest.mark.parametrize("path", [*TEMPLATES, DEMO / "model" / "chat_template.jinja"], ids=str)
def test_go_prints_what_the_chat_template_prints(path: Path, program: Path) -> None:
    render = render_of(path.read_text(encoding="utf-8"))
    if path.name.startswith(OF_PICTURES):
        with pytest.raises(UnknownTemplate):
            derive(render)
        return
    template = derive(render)
    asked = conversations(has_system=template.system is not None)
    assert filled(program, template, asked) == [render(messages, True) for messages in asked]


@pytest.mark.parametrize("template", [ODD, IN_QUESTION], ids=["odd letters", "system in question"])
def test_go_prints_every_letter(template: GoTemplate, program: Path) -> None:
    asked = conversations(has_system=True)
    assert filled(program, template, asked) == [template.render(messages) for messages in asked]
