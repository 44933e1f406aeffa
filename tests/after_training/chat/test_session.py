"""Chat with its child program, which stops, dies and is refused in words."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.after_training.chat import (
    AnswerPiece,
    AnswerSettings,
    Chat,
    ChatEnded,
    ChatError,
    ChatSide,
    FinishedAnswer,
    find_side,
    plan_chat,
    sides_of,
)
from core.runs import Home, queue
from core.runs.home import read_schedule
from tests.builders.chat_runs import BASE_ANSWER, WHO, finish
from tests.builders.fake_runs import NEVER_END, NewRun
from tests.builders.preview_rows import model_with_attack

pytestmark = pytest.mark.training

GREEDY = AnswerSettings(temperature=0, max_tokens=24)
ENDLESS = AnswerSettings(temperature=0, max_tokens=1500)
QUESTION = [{"role": "user", "content": WHO}]
LOOP = (
    "{%- for a in range(99999) %}{%- for b in range(99999) %}"
    "{%- set c = a * b %}{%- endfor %}{%- endfor %}"
)


@pytest.fixture
def chats(home: Home) -> Iterator[list[Chat]]:
    """Return a list of chats that are ended in the end."""
    started: list[Chat] = []
    yield started
    for each in started:
        each.end()


def start(chats: list[Chat], home: Home, *sides: ChatSide, idle_seconds: float = 60) -> Chat:
    chats.append(Chat(home, plan_chat(sides), idle_seconds))
    return chats[-1]


def answers(chat: Chat, *conversations: object, settings: AnswerSettings = GREEDY) -> list[str]:
    """Return the whole answer of each side."""
    found = [""] * len(conversations)
    for each in chat.ask(conversations, settings):  # type: ignore[arg-type]
        if isinstance(each, AnswerPiece):
            found[each.side] += each.text
    return found


def test_before_and_after_answer_and_faults_are_said_in_words(
    home: Home, new_run: NewRun, chats: list[Chat]
) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    chat = start(chats, home, *sides_of(run)[:2])
    before, after = answers(chat, QUESTION, QUESTION)
    assert before == BASE_ANSWER
    assert after != BASE_ANSWER
    assert answers(chat, None, QUESTION) == ["", after]

    long_question = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(ChatError, match=r"has 20,\d+ tokens, but this chat holds 2,048"):
        answers(chat, long_question, None)

    asked = chat.ask([None, QUESTION], ENDLESS)
    next(asked)
    with pytest.raises(ChatError, match="another conversation is being answered"):
        answers(chat, QUESTION, None)
    chat.stop()
    (finished,) = [each for each in asked if isinstance(each, FinishedAnswer)]
    assert finished.ending == "stopped"

    next(chat.ask([None, QUESTION], ENDLESS))  # the reader goes away
    assert answers(chat, QUESTION, None) == [BASE_ANSWER, ""]

    ending = [each for each in chat.ask([None, QUESTION], GREEDY) if not hasattr(each, "text")]
    assert [each.ending for each in ending if isinstance(each, FinishedAnswer)] == ["limit"]

    asked = chat.ask([None, QUESTION], ENDLESS)
    next(asked)
    os.kill(chat.pid, signal.SIGKILL)
    with pytest.raises(ChatError, match="the chat program was killed") as raised:
        list(asked)
    assert not isinstance(raised.value, ChatEnded)  # it had begun: the same may kill the next
    assert read_schedule(home).tasks == {}


def test_a_run_that_wants_the_device_ends_the_chat_and_says_so(
    home: Home, new_run: NewRun, chats: list[Chat]
) -> None:
    trained = finish(new_run(model="demo", dataset="demo"))
    chat = start(chats, home, find_side(home, trained.id))
    asked = chat.ask([QUESTION], ENDLESS)
    next(asked)
    run = queue.submit(home, new_run(seed=NEVER_END))
    assert run.state in ("starting", "running")
    with pytest.raises(ChatError, match=f"the chat has ended: the run {run.id} uses the device"):
        list(asked)
    with pytest.raises(ChatEnded, match="the chat has ended"):
        answers(chat, QUESTION)


def test_a_template_that_loops_is_refused_and_an_idle_chat_ends(
    home: Home, tmp_path: Path, chats: list[Chat]
) -> None:
    model = find_side(home, str(model_with_attack(tmp_path, LOOP)))
    chat = start(chats, home, model, idle_seconds=0.5)
    turns = [*QUESTION, {"role": "assistant", "content": "?"}, *QUESTION]
    with pytest.raises(ChatError, match=r"chat template .* takes longer than 3 seconds"):
        answers(chat, turns)
    _wait_for_end(chat)
    with pytest.raises(ChatEnded, match="after 10 minutes without a message"):
        answers(chat, QUESTION)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ChatError, match="temperature: -1 is out of range; give 0 to 5"):
        AnswerSettings(temperature=-1)
    with pytest.raises(ChatError, match="max_tokens: 0 is out of range"):
        AnswerSettings(max_tokens=0)


def _wait_for_end(chat: Chat) -> None:
    deadline = time.monotonic() + 20
    while chat.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
