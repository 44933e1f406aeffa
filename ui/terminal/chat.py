"""Command `chat`: talk to a run or a model in the terminal. Each line of a pipe is a message."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from types import FrameType, MappingProxyType

from core.after_training.chat import (
    AnswerPiece,
    AnswerSettings,
    Chat,
    ChatEnded,
    ChatError,
    ChatSide,
    FinishedAnswer,
    find_side,
    keep_answer,
    keep_preference,
    plan_chat,
)
from core.job import Problem, TailorError
from core.runs import Home
from core.runs.listing import list_runs
from ui.terminal.printing import harmless, out, say

COMMANDS_HELP = (
    "/new begins a new conversation, /base switches between before and after, /retry asks again, "
    "/keep [TEXT] keeps the answer (or TEXT) as a training row, /prefer [TEXT] prefers it (or "
    "TEXT) to the one before, Ctrl-C stops an answer, Ctrl-D ends."
)
ENDINGS: Mapping[str, str] = MappingProxyType(
    {"limit": "cut after {tokens} tokens: give --max-tokens for more", "stopped": "stopped"}
)


def chat(
    *,
    home: str | None = None,
    target: str = "",
    base: bool = False,
    system: str = "",
    temperature: str = "0.7",
    top_p: str = "0.95",
    max_tokens: str = "512",
    seed: str = "0",
    device: str = "0",
) -> int:
    """Talk to a model until the input ends. Return 1 if a message was refused.

    Raises TailorError.
    """
    settings = AnswerSettings(
        temperature=_number("temperature", temperature),
        top_p=_number("top_p", top_p),
        max_tokens=int(_number("max_tokens", max_tokens)),
        seed=int(_number("seed", seed)),
    )
    place = Home.find(home)
    talk = TerminalChat(place, _sides(place, target), settings, system, _device(device))
    if base and len(talk.sides) == 1:
        fix = "leave out --base, or give a run"
        raise ChatError(Problem("base", f"{talk.side.label} is no trained run", fix))
    talk.side_index = 1 if base else 0
    try:
        talk.start()
        return _converse(talk)
    finally:
        talk.end()


@dataclass
class TerminalChat:
    """Conversation in this terminal, and the chat that answers it."""

    home: Home
    sides: tuple[ChatSide, ...]
    """What it talks to; of a run also its model before the training."""
    settings: AnswerSettings
    system: str
    device: int
    side_index: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)
    earlier_answer: str = ""
    """Answer to the same message that /retry has replaced."""
    chat: Chat | None = None

    @property
    def side(self) -> ChatSide:
        return self.sides[self.side_index]

    @property
    def answer(self) -> str:
        """Last answer, "" if there is none."""
        is_answered = self.messages and self.messages[-1]["role"] == "assistant"
        return self.messages[-1]["content"] if is_answered else ""

    @property
    def question(self) -> list[dict[str, str]]:
        """Conversation up to the last question, under the system prompt."""
        asked = self.messages[:-1] if self.answer else self.messages
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *asked]

    def start(self) -> None:
        """Load what answers. Both sides, if they are one model. Raises TailorError."""
        sides: tuple[ChatSide, ...] = (self.side,)
        if len(self.sides) == 2 and self.sides[1].shares_model_with(self.sides[0]):
            sides = self.sides
        plan = plan_chat(sides, self.device)
        say(f"Loading {self.side.label} ...")
        self.chat = Chat(self.home, plan)
        say(*self.chat.notes)

    def end(self) -> None:
        """End the chat and free its device."""
        if self.chat:
            self.chat.end()
            self.chat = None

    def ask(self) -> Iterator[AnswerPiece | FinishedAnswer]:
        """Yield the answer to the conversation. A chat that has ended is loaded again.

        Raises ChatError.
        """
        try:
            yield from self._pieces()
        except ChatEnded:
            self.end()
            yield from self._pieces()

    def _pieces(self) -> Iterator[AnswerPiece | FinishedAnswer]:
        if self.chat is None or self.side not in self.chat.plan.sides:
            self.end()
            self.start()
        assert self.chat
        asked = [self.question if side == self.side else None for side in self.chat.plan.sides]
        yield from self.chat.ask(asked, self.settings)


def _converse(talk: TerminalChat) -> int:
    """Answer line after line. Return the exit code."""
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        out.print(f"{talk.side.label}\n{COMMANDS_HELP}", style="dim")
    code = 0
    for line in _lines(is_interactive):
        word, _, rest = line.strip().partition(" ")
        try:
            if word in COMMANDS:
                COMMANDS[word](talk, rest.strip())
            elif word.startswith("/"):
                say(COMMANDS_HELP)
            elif word:
                talk.messages.append({"role": "user", "content": line.strip()})
                talk.earlier_answer = ""
                _answer(talk)
        except TailorError as error:
            say(*error.problems)
            code = 1
            if talk.messages and not talk.answer:
                talk.messages.pop()
            if talk.chat and not talk.chat.is_running and not is_interactive:
                raise
    return 0 if is_interactive else code


def _answer(talk: TerminalChat) -> None:
    """Print the answer piece by piece, and add it to the conversation."""
    answer = ""
    with _stopped_by_ctrl_c(talk):
        for each in talk.ask():
            if isinstance(each, AnswerPiece):
                answer += each.text
                print(harmless(each.text), end="", flush=True)
            else:
                print()
                if each.ending in ENDINGS:
                    say(f"({ENDINGS[each.ending].format(tokens=each.num_tokens)})")
    talk.messages.append({"role": "assistant", "content": answer.strip()})


def _new(talk: TerminalChat, _rest: str) -> None:
    talk.messages.clear()
    say("A new conversation.")


def _base(talk: TerminalChat, _rest: str) -> None:
    if len(talk.sides) == 1:
        raise ChatError(Problem("/base", f"{talk.side.label} is no trained run", "give a run"))
    talk.side_index = 1 - talk.side_index
    say(f"Now {talk.side.label}.")


def _retry(talk: TerminalChat, _rest: str) -> None:
    _require_answer(talk)
    talk.earlier_answer = talk.messages.pop()["content"]
    talk.settings = replace(talk.settings, seed=talk.settings.seed + 1)
    _answer(talk)


def _keep(talk: TerminalChat, text: str) -> None:
    _require_answer(talk)
    say(f"Kept as a row of {keep_answer(talk.home, talk.question, text or talk.answer)}.")


def _prefer(talk: TerminalChat, text: str) -> None:
    _require_answer(talk)
    chosen, rejected = text or talk.answer, talk.answer if text else talk.earlier_answer
    if not rejected:
        fix = "write /prefer and the better answer, or ask for a second one with /retry"
        raise ChatError(Problem("/prefer", "there is one answer only", fix))
    path = keep_preference(talk.home, talk.question, chosen, rejected)
    say(f"Kept as a row of {path}.")


COMMANDS: Mapping[str, Callable[[TerminalChat, str], None]] = MappingProxyType(
    {"/new": _new, "/base": _base, "/retry": _retry, "/keep": _keep, "/prefer": _prefer}
)


def _require_answer(talk: TerminalChat) -> None:
    if not talk.answer:
        raise ChatError(Problem("answer", "there is no answer yet", "write a message first"))


def _sides(home: Home, target: str) -> tuple[ChatSide, ...]:
    """Return the side that was named, and behind it the model before the training, if there is one.

    Raises ChatError, ModelNotFound.
    """
    named = target or _newest(home)
    side = find_side(home, named)
    if not side.is_trained:
        return (side,)
    run_name = named.rpartition("@")[0] or named
    return side, find_side(home, f"{run_name}@base")


def _newest(home: Home) -> str:
    """Return the newest finished run, or the demo if there is none."""
    finished = [run for run in list_runs(home) if run.state == "finished"]
    return max(finished, key=lambda run: run.created).id if finished else "demo"


def _lines(is_interactive: bool) -> Iterator[str]:
    if not is_interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() a history and editing
    with suppress(EOFError):
        while True:
            yield input("> ")


@contextmanager
def _stopped_by_ctrl_c(talk: TerminalChat) -> Iterator[None]:
    """Let the first Ctrl-C stop the answer, and the second one end the command."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if talk.chat:
            # In a thread, because the main thread may hold the lock that sending takes.
            threading.Thread(target=talk.chat.stop, daemon=True).start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _number(name: str, text: str) -> float:
    """Return the number in a flag. Raises ChatError."""
    flag = "--" + name.replace("_", "-")
    try:
        number = float(text)
    except ValueError:
        raise ChatError(Problem(flag, f"{text[:40]!r} is no number", "give one")) from None
    if not isfinite(number):
        raise ChatError(Problem(flag, f"{text} is out of range", "give a finite number"))
    return number


def _device(text: str) -> int:
    """Return the index of a GPU. Raises ChatError."""
    device = int(_number("device", text))
    if device < 0:
        raise ChatError(Problem("device", f"{device} is no device", "give 0 or more"))
    return device
