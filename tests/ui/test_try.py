"""Try tab: two models answer side by side, and their answers are kept as rows."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from core.after_training.chat import (
    AnswerPiece,
    AnswerSettings,
    ChatEnded,
    ChatError,
    ChatPlan,
    FinishedAnswer,
)
from core.job import Problem
from core.runs import Home
from tests.builders.chat_runs import add_checkpoint, finish
from tests.builders.fake_runs import NewRun
from ui.handlers import conversations as module
from ui.handlers.conversations import Conversations
from ui.handlers.trying import NO_SECOND, TryHandlers
from ui.render.conversation import ShownAnswer

SETTINGS: dict[str, Any] = {
    "try_left": "demo",
    "try_right": NO_SECOND,
    "try_system": "",
    "try_temperature": 0,
    "try_top_p": None,
    "try_max_tokens": 20.0,
    "try_seed": None,
}


class FakeChat:
    """Chat without a program: each side says what it was asked, and waits while it is held."""

    problem = ""
    """Why it refuses, if it does."""
    is_silent = False
    """True if it answers with nothing."""
    num_dead = 0
    """Number of chats that end before they read the next message."""
    held: threading.Event | None = None

    def __init__(self, _home: Home, plan: ChatPlan) -> None:
        self.plan = plan
        self.notes = ()
        self.is_running, self.is_answering, self.is_stopped = True, False, False
        self.asked: list[Any] = []

    def ask(self, conversations: Any, settings: AnswerSettings) -> Iterator[Any]:
        self.asked = [*conversations, settings]
        self.is_answering = True
        if FakeChat.num_dead:
            FakeChat.num_dead -= 1
            raise ChatEnded(Problem("chat", "the chat program was killed", "ask again"))
        if self.problem:
            raise ChatError(Problem("chat", self.problem, "wait"))
        for side, messages in enumerate(conversations):
            if not self.is_silent:
                yield AnswerPiece(side, f"<b>{side}</b> ")
            if self.held:
                self.held.wait(10)
            if not self.is_silent:
                yield AnswerPiece(side, messages[-1]["content"])
            ending: Any = "stopped" if self.is_stopped else "complete"
            yield FinishedAnswer(side, ending, 7, 0.5, 0.1)
        self.is_answering = False

    def stop(self) -> None:
        self.is_stopped = True

    def end(self) -> None:
        self.is_running = False


class Page:
    """Open page, with the handlers of its Try tab."""

    def __init__(self, handlers: TryHandlers) -> None:
        self.handlers = handlers
        self.id = ""
        self.typed = ""
        """Text in the box of the message."""

    def send(self, message: str, **settings: object) -> dict[str, Any]:
        updates = self.handlers.on_try_send(self.id, message, **{**SETTINGS, **settings})
        self.id = str(updates.get("try_id", self.id))
        return updates

    def answered(self, message: str = "Hi", **settings: object) -> dict[str, Any]:
        """Send a message and return what the page shows once it is answered."""
        self.send(message, **settings)
        return self.wait()

    def wait(self) -> dict[str, Any]:
        conversation = self.handlers.conversations.find(self.id)
        deadline = time.monotonic() + 10
        while conversation and conversation.is_busy and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.handlers.on_try_tick(self.id, self.typed)


@pytest.fixture
def handlers(home: Home, monkeypatch: pytest.MonkeyPatch) -> TryHandlers:
    chat: Any = FakeChat
    monkeypatch.setattr(FakeChat, "problem", "")
    monkeypatch.setattr(FakeChat, "held", None)
    monkeypatch.setattr(FakeChat, "num_dead", 0)
    return TryHandlers(home, Conversations(home, chat))


@pytest.fixture
def page(handlers: TryHandlers) -> Page:
    return Page(handlers)


def test_a_run_is_tried_before_and_after(home: Home, new_run: NewRun, page: Page) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    add_checkpoint(run, 40)
    opened = page.handlers.on_try_run(run_id=run.id)
    assert opened["try_left"]["value"] == f"{run.id}@base"
    assert opened["try_right"]["value"] == run.id
    offered = [value for _label, value in opened["try_right"]["choices"]]
    assert offered == [NO_SECOND, f"{run.id}@base", run.id, f"{run.id}@40", "demo"]
    shown = page.answered("Who?", try_left=f"{run.id}@base", try_right=run.id)
    assert shown["try_log"].count('<p class="side">') == 2
    assert shown["try_prefer_left"]["visible"]
    assert "Answered" in shown["try_status"]


def test_a_new_page_offers_the_newest_run(home: Home, new_run: NewRun, page: Page) -> None:
    assert page.handlers.on_try_open("", "")["try_left"]["value"] == "demo"
    run = finish(new_run(model="demo", dataset="demo"))
    assert page.handlers.on_try_open("", "")["try_right"]["value"] == run.id
    assert page.handlers.on_try_open("mine", "")["try_left"]["value"] == "mine"


def test_answers_and_questions_are_escaped(page: Page) -> None:
    shown = page.answered("<script>alert(1)</script>")
    assert "<script>" not in shown["try_log"]
    assert "&lt;b&gt;0&lt;/b&gt;" in shown["try_log"]


def test_a_conversation_holds_the_earlier_answers_and_the_system_prompt(page: Page) -> None:
    page.answered("One", try_system="Be brief.")
    page.answered("Two", try_system="Be brief.")
    chat: Any = page.handlers.conversations.chat_on(0)
    roles = [message["role"] for message in chat.asked[0]]
    assert roles == ["system", "user", "assistant", "user"]
    assert chat.asked[-1] == AnswerSettings(temperature=0, max_tokens=20)


def test_other_models_begin_a_new_conversation(page: Page, new_run: NewRun) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    page.answered("One")
    shown = page.answered("Two", try_left=run.id)
    assert shown["try_log"].count('class="question"') == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"try_left": "no-such-model"}, "is not a preset, a folder or a Hub id"),
        ({"try_left": NO_SECOND}, "No model is chosen. Choose one."),
        ({"try_temperature": 9}, "9 is out of range. Give 0 to 5."),
        ({"try_max_tokens": 10**400}, "is out of range"),
    ],
)
def test_what_cannot_be_asked_is_said(page: Page, settings: dict[str, object], said: str) -> None:
    assert said in page.send("Hi", **settings)["try_status"]


def test_a_chat_that_ends_says_why_and_the_message_can_be_sent_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChat, "problem", "the run r1 uses the device")
    shown = page.answered()
    assert "The run r1 uses the device. Wait." in shown["try_status"]
    assert 'class="question"' not in shown["try_log"]
    assert shown["try_message"] == "Hi"
    again = page.wait()
    assert not again["try_timer"].active
    assert "try_message" not in again


def test_a_message_that_comes_back_overwrites_no_other(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChat, "problem", "the run r1 uses the device")
    page.typed = "Another"
    assert "try_message" not in page.answered()


def test_a_side_is_not_told_what_it_has_not_answered(page: Page, new_run: NewRun) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    page.answered("One", try_right=run.id)
    conversation = page.handlers.conversations.find(page.id)
    assert conversation
    conversation.turns[-1].answers[1] = ShownAnswer()
    page.answered("Two", try_right=run.id)
    chat: Any = page.handlers.conversations.chat_on(0)
    assert [len(messages) for messages in chat.asked[:2]] == [3, 1]


@pytest.mark.parametrize(("num_dead", "status"), [(1, "Answered."), (2, "was killed")])
def test_a_message_to_a_chat_that_has_ended_is_sent_to_a_new_one(
    page: Page, monkeypatch: pytest.MonkeyPatch, num_dead: int, status: str
) -> None:
    page.answered()
    monkeypatch.setattr(FakeChat, "num_dead", num_dead)
    assert status in page.answered("again")["try_status"]


def test_another_page_waits_until_an_answer_is_whole(
    handlers: TryHandlers, page: Page, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    held = threading.Event()
    monkeypatch.setattr(FakeChat, "held", held)
    page.send("Hi")
    _wait_for_piece(page)
    other = Page(handlers)
    shown = other.answered("Hi", try_left=run.id)
    assert "Another conversation is being answered on this device" in shown["try_status"]
    assert page.send("again") == {}
    page.handlers.on_try_stop(page.id)
    held.set()
    stopped = page.wait()
    assert "stopped" in stopped["try_log"]
    assert "Stopped." in stopped["try_status"]
    assert "Answered" in other.answered("Hi", try_left=run.id)["try_status"]


def test_an_answer_that_no_page_waits_for_is_stopped(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_WITHOUT_PAGE", -1.0)
    assert "stopped" in page.answered()["try_log"]


def test_a_corrected_answer_becomes_a_row(home: Home, page: Page) -> None:
    page.answered("Who?", try_system="Be brief.")
    assert page.handlers.on_try_correct(0, page.id)["try_edit"]["value"] == "<b>0</b> Who?"
    assert "Kept as a row" in str(page.handlers.on_try_keep(page.id, "I am Pip.")["try_status"])
    row = json.loads((home.uploads / "from-chat" / "chat-answers.jsonl").read_text())
    assert [message["content"] for message in row["messages"]] == ["Be brief.", "Who?", "I am Pip."]


def test_the_better_of_two_answers_becomes_a_preference(
    home: Home, new_run: NewRun, page: Page
) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    page.answered("Who?", try_right=run.id)
    page.handlers.on_try_prefer(1, page.id)
    page.handlers.on_try_keep_preference(page.id, "I am Pip.")
    lines = (home.uploads / "from-chat" / "chat-preferences.jsonl").read_text().splitlines()
    pairs = []
    for line in lines:
        row = json.loads(line)
        pairs.append((row["chosen"][0]["content"], row["rejected"][0]["content"]))
    assert pairs == [
        ("<b>1</b> Who?", "<b>0</b> Who?"),
        ("I am Pip.", "<b>1</b> Who?"),
    ]


def test_a_correction_is_better_than_the_answer_that_it_corrects(
    home: Home, new_run: NewRun, page: Page
) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    page.answered("Who?", try_right=run.id)
    assert page.handlers.on_try_correct(0, page.id)["try_edit"]["value"] == "<b>0</b> Who?"
    page.handlers.on_try_keep_preference(page.id, "I am Pip.")
    row = json.loads((home.uploads / "from-chat" / "chat-preferences.jsonl").read_text())
    assert row["rejected"][0]["content"] == "<b>0</b> Who?"


def test_an_answer_of_one_side_only_is_corrected(page: Page, new_run: NewRun) -> None:
    run = finish(new_run(model="demo", dataset="demo"))
    shown = page.answered("Who?", try_right=run.id)
    conversation = page.handlers.conversations.find(page.id)
    assert conversation
    conversation.turns[-1].answers[1] = ShownAnswer()  # as after a stop
    shown = page.wait()
    assert "no answer" in shown["try_log"]
    assert not shown["try_prefer_left"]["visible"]
    assert page.handlers.on_try_correct(-1, page.id)["try_edit"]["value"] == "<b>0</b> Who?"


def test_a_correction_goes_with_the_answer_that_it_corrects(page: Page) -> None:
    page.answered("One")
    assert page.handlers.on_try_correct(0, page.id)["try_keep"]["visible"]
    sent = page.send("Two")
    assert not sent["try_keep"]["visible"]
    assert sent["try_edit"]["value"] == ""


def test_an_empty_answer_is_said(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeChat, "is_silent", True)
    assert "an empty answer" in page.answered()["try_log"]
    with pytest.raises(ChatError, match="the answer is empty"):
        page.handlers.on_try_correct(-1, page.id)


def test_nothing_is_kept_before_an_answer(page: Page) -> None:
    with pytest.raises(ChatError, match="there is no answer yet"):
        page.handlers.on_try_keep(page.id, "text")
    page.answered()
    with pytest.raises(ChatError, match="there is one answer only"):
        page.handlers.on_try_prefer(0, page.id)
    page.handlers.on_try_new(page.id)
    with pytest.raises(ChatError, match="there is no answer yet"):
        page.handlers.on_try_correct(0, page.id)


def _wait_for_piece(page: Page) -> None:
    conversation = page.handlers.conversations.find(page.id)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if conversation and conversation.turns and conversation.turns[0].answers[0].text:
            return
        time.sleep(0.01)
