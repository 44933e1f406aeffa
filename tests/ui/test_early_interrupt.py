"""Test Ctrl-C while the libraries of a command are imported: a real process, a real signal."""

import signal
import subprocess
import sys

import pytest

import app
from tests.builders.paths import ROOT

STOPPED_IN_SILENCE = (130, "")
COMMANDS = (
    "serve",
    "train",
    "estimate",
    "check demo",
    "preview demo",
    "models",
    "compare",
    "runs",
    "export",
    "chat",
    "check-model latest",
    "doctor",
)


def interrupted_at(module: str, words: str) -> tuple[int, str]:
    """Interrupt a command as it has imported a module. Return its exit code and its last words."""
    program = subprocess.Popen(
        [sys.executable, "-X", "importtime", "app.py", *words.split()],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores this signal, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with program:
        assert program.stderr
        for line in program.stderr:
            if line.rpartition("|")[2].strip() == module:
                program.send_signal(signal.SIGINT)
                break
        said = [line for line in program.stderr if not line.startswith("import time:")]
    return program.returncode, "".join(said)


def test_every_command_is_known_here() -> None:
    (commands,) = app.parser()._subparsers._group_actions
    assert [words.split()[0] for words in COMMANDS] == list(commands.choices)


@pytest.mark.parametrize("words", ["", *COMMANDS])
def test_command_ends_without_a_word(words: str) -> None:
    assert interrupted_at("core.job", words) == STOPPED_IN_SILENCE


@pytest.mark.parametrize("module", ["argparse", "pydantic", "core.runs", "rich.console"])
def test_import_of_a_command_ends_without_a_word(module: str) -> None:
    assert interrupted_at(module, "doctor") == STOPPED_IN_SILENCE


@pytest.mark.parametrize("module", ["gradio.themes", "gradio"])
def test_import_of_the_page_ends_without_a_word(module: str) -> None:
    assert interrupted_at(module, "serve --no-browser") == STOPPED_IN_SILENCE
