"""Conversations of the pages that are open, and the chat that answers them. One chat for each
device: a page that asks for other models gets it as soon as nothing is being answered."""

import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from core.after_training.chat import (
    AnswerPiece,
    AnswerSettings,
    Chat,
    ChatEnded,
    ChatError,
    ChatMessage,
    ChatPlan,
    ChatSide,
    FinishedAnswer,
    plan_chat,
)
from core.job import Problem, TailorError
from core.runs import Home
from ui import render
from ui.events import INTERNAL_ERROR
from ui.render.conversation import ShownAnswer, ShownTurn

LOADING = "Loading the model ..."
MAX_CONVERSATIONS = 100
SECONDS_WITHOUT_PAGE = 30.0
"""An answer that no page has asked after for so long is stopped."""


@dataclass
class PageConversation:
    """Messages and answers of one page."""

    sides: tuple[ChatSide, ...] = ()
    system: str = ""
    turns: list[ShownTurn] = field(default_factory=list)
    status: str = ""
    """What is being done, or what was noted."""
    problem: str = ""
    is_busy: bool = False
    seen: float = field(default_factory=time.monotonic)
    """When its page has last asked after it."""
    chat: Chat | None = None
    """Chat that is answering it."""
    unanswered: str = ""
    """Message that got no answer, until its page has it back."""
    corrected: int = -1
    """Side whose last answer is being corrected, the trained one until a user chooses."""

    def question_of(self, turn: ShownTurn, side: int) -> list[ChatMessage]:
        """Return the messages up to a question, with the answers of one side.

        Leaves out what that side has not answered, because many templates take turns only.
        """
        messages: list[ChatMessage] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for each in self.turns:
            if each is turn:
                break
            if each.answers[side].text:
                messages.append({"role": "user", "content": each.question})
                messages.append({"role": "assistant", "content": each.answers[side].text})
        return [*messages, {"role": "user", "content": turn.question}]


class Conversations:
    """Conversations by a secret id that only their page knows, the oldest of which are dropped."""

    def __init__(self, home: Home, start: Callable[[Home, ChatPlan], Chat] = Chat) -> None:
        """Use `start` to load what a plan asks for."""
        self._home = home
        self._start = start
        self._by_id: dict[str, PageConversation] = {}
        self._chats: dict[int, Chat] = {}
        self._lock = threading.Lock()

    def find(self, conversation_id: str) -> PageConversation | None:
        """Return a conversation, None if there is none with this id."""
        return self._by_id.get(conversation_id)

    def chat_on(self, device: int) -> Chat | None:
        """Return the chat that was last started on a device."""
        return self._chats.get(device)

    def add(self) -> str:
        """Return the id of a new conversation."""
        conversation_id = secrets.token_urlsafe(16)
        while len(self._by_id) >= MAX_CONVERSATIONS:
            self._by_id.pop(next(iter(self._by_id)), None)
        self._by_id[conversation_id] = PageConversation()
        return conversation_id

    def ask(self, conversation: PageConversation, question: str, settings: AnswerSettings) -> None:
        """Begin to answer a question. A thread writes the answers into the conversation."""
        answers = [ShownAnswer() for _side in conversation.sides]
        conversation.turns.append(ShownTurn(question, answers))
        conversation.is_busy = True
        conversation.corrected = -1
        conversation.problem = ""
        conversation.status = LOADING
        conversation.seen = time.monotonic()
        arguments = (conversation, settings)
        threading.Thread(target=self._answer, args=arguments, name="chat", daemon=True).start()

    def close(self) -> None:
        """End the chats. One that is still loading ends with this process."""
        for chat in tuple(self._chats.values()):
            chat.end()

    def _answer(self, conversation: PageConversation, settings: AnswerSettings) -> None:
        try:
            self._write_answers(conversation, settings)
        except TailorError as error:
            conversation.problem = " ".join(map(render.sentences, error.problems))
        except Exception:  # nothing above this would tell the user
            traceback.print_exc()
            conversation.problem = INTERNAL_ERROR
        turn = conversation.turns[-1]
        if conversation.problem and not any(answer.text for answer in turn.answers):
            conversation.unanswered = conversation.turns.pop().question
        conversation.chat = None
        conversation.is_busy = False

    def _write_answers(self, conversation: PageConversation, settings: AnswerSettings) -> None:
        turn = conversation.turns[-1]
        for each in self._pieces(conversation, settings):
            answer = turn.answers[each.side]
            if isinstance(each, AnswerPiece):
                answer.text += each.text
            else:
                answer.ending, answer.num_tokens = each.ending, each.num_tokens
                answer.seconds = each.seconds
            if conversation.chat and time.monotonic() - conversation.seen > SECONDS_WITHOUT_PAGE:
                conversation.chat.stop()
        notes = conversation.chat.notes if conversation.chat else ()
        is_stopped = any(answer.ending == "stopped" for answer in turn.answers)
        conversation.status = " ".join(["Stopped." if is_stopped else "Answered.", *notes])

    def _pieces(
        self, conversation: PageConversation, settings: AnswerSettings
    ) -> Iterator[AnswerPiece | FinishedAnswer]:
        """Yield the pieces of the answers. A chat that has ended is loaded again."""
        turn = conversation.turns[-1]
        asked = [conversation.question_of(turn, side) for side in range(len(turn.answers))]
        try:
            yield from self._ready_chat(conversation).ask(asked, settings)
        except ChatEnded:
            yield from self._ready_chat(conversation).ask(asked, settings)

    def _ready_chat(self, conversation: PageConversation) -> Chat:
        """Return the chat that answers this conversation from now on."""
        conversation.status = LOADING
        chat = self._chat_for(conversation.sides)
        conversation.chat = chat
        conversation.status = " ".join(["Answering ...", *chat.notes])
        conversation.seen = time.monotonic()
        return chat

    def _chat_for(self, sides: Sequence[ChatSide]) -> Chat:
        """Return the chat with these sides on their device, started now if there is none.

        Raises ChatError, SpecError.
        """
        device = sides[0].job.device
        with self._lock:
            chat = self._chats.get(device)
            if chat and chat.is_running and chat.plan.sides == tuple(sides):
                return chat
            if chat and chat.is_running and chat.is_answering:
                problem = "another conversation is being answered on this device"
                raise ChatError(Problem("chat", problem, "send it again when that has ended"))
            if chat:
                with suppress(TailorError):
                    chat.end()
            self._chats.pop(device, None)
            self._chats[device] = self._start(self._home, plan_chat(sides, device))
            return self._chats[device]
