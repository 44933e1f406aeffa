"""Command line: `chat` answers each line of a pipe, and keeps what its user corrects."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from core.runs import Home
from core.runs.home import read_schedule
from tests.builders.chat_runs import BASE_ANSWER, WHO, finish
from tests.builders.fake_runs import NewRun

pytestmark = pytest.mark.training

Printed = pytest.CaptureFixture[str]
LINES = (
    "/keep",
    WHO,
    "/keep I am Pip.",
    "/prefer",
    "/prefer I am Pip.",
    "/base",
    "/new",
    WHO,
    "word " * 20_000,
    "/what",
)


def test_a_pipe_is_a_conversation_that_can_be_corrected(
    home: Home,
    new_run: NewRun,
    tailor: Callable[..., int],
    capsys: Printed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(LINES)))
    assert tailor("chat", "--base", "--temperature", "0", "--max-tokens", "12") == 1
    printed = capsys.readouterr()
    base, trained = printed.out.splitlines()
    assert base == BASE_ANSWER
    assert trained != BASE_ANSWER
    assert "answer: there is no answer yet; write a message first" in printed.err
    assert "/prefer: there is one answer only" in printed.err
    assert f"Now after ({run.id})." in printed.err
    assert "tokens, but this chat holds 2,048" in printed.err
    assert "/new begins a new conversation" in printed.err
    row = json.loads((home.uploads / "from-chat" / "chat-answers.jsonl").read_text())
    assert row["messages"][-1] == {"role": "assistant", "content": "I am Pip."}
    row = json.loads((home.uploads / "from-chat" / "chat-preferences.jsonl").read_text())
    assert row["rejected"] == [{"role": "assistant", "content": BASE_ANSWER}]


class DeadlyInput(io.StringIO):
    """Input that kills the program that answers before its last line is read."""

    def __init__(self, home: Home, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.home = home

    def __iter__(self) -> Iterator[str]:
        *first, last = self.read().splitlines()
        yield from first
        child = read_schedule(self.home).tasks["0"].child
        assert child
        os.kill(child.pid, signal.SIGKILL)
        yield last


def test_a_chat_that_was_killed_is_loaded_again(
    home: Home, tailor: Callable[..., int], capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", DeadlyInput(home, [WHO, "/new", WHO]))
    assert tailor("chat", "demo", "--temperature", "0", "--max-tokens", "12") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [BASE_ANSWER, BASE_ANSWER]
    assert printed.err.count("Loading ") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("no-such-model",), "is not a preset, a folder or a Hub id"),
        (("demo", "--base"), "base: Demo model is no trained run; leave out --base, or give a run"),
        (("demo", "--temperature", "hot"), "--temperature: 'hot' is no number; give one"),
        (("demo", "--top-p", "7"), "top_p: 7.0 is out of range; give 0 to 1"),
        (("demo", "--device", "-1"), "device: -1 is no device; give 0 or more"),
    ],
)
def test_what_cannot_answer_is_refused_in_one_line(
    tailor: Callable[..., int], capsys: Printed, flags: tuple[str, ...], said: str
) -> None:
    assert tailor("chat", *flags) == 2
    assert said in capsys.readouterr().err
