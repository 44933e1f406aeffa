"""Chat: starts the child program on its device, asks it, stops and ends it. Imports no torch."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from core.after_training.chat.errors import ChatEnded, ChatError
from core.after_training.chat.plan import ChatPlan
from core.device.child import Child, Limits
from core.job import ChildError, Problem, SpecError
from core.runs import Home, launch, queue

IDLE_SECONDS = 600
SECONDS_TO_LOAD = 1200
"""Longest silence while models are loaded, which may have to be downloaded."""
SECONDS_TO_ANSWER = 300
"""Longest silence between two pieces of an answer."""
SECONDS_TO_STOP = 20
IDLE_EXIT_CODE = 3
MAX_ANSWER_TOKENS = 8192
Ending = Literal["complete", "limit", "stopped"]
ChatMessage = Mapping[str, str]
"""Message with the keys `role` and `content`."""


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of sampling and of the length of answers."""

    temperature: float = 0.7
    """0 always takes the most probable token."""
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ChatError for a value out of its range."""
        ranges: tuple[tuple[str, float, float], ...] = (
            ("temperature", 0, 5),
            ("top_p", 0, 1),
            ("max_tokens", 1, MAX_ANSWER_TOKENS),
            ("seed", 0, 2**32 - 1),
        )
        for name, least, most in ranges:
            value = getattr(self, name)
            if not least <= value <= most:
                shown = str(value)[:20]
                problem = Problem(name, f"{shown} is out of range", f"give {least} to {most}")
                raise ChatError(problem)


@dataclass(frozen=True)
class AnswerPiece:
    """Next piece of the answer of a side."""

    side: int
    text: str


@dataclass(frozen=True)
class FinishedAnswer:
    """End of the answer of a side."""

    side: int
    ending: Ending
    """limit: it was cut at max_tokens."""
    num_tokens: int
    seconds: float
    """From the question to the end."""
    seconds_to_first: float
    """To the first token."""


class Chat:
    """Child program that answers for the sides of a plan. One conversation is answered at a time.

    It ends by itself after 10 idle minutes, and when a run or another task wants its device.
    """

    def __init__(self, home: Home, plan: ChatPlan, idle_seconds: float = IDLE_SECONDS) -> None:
        """Start the program and load the models.

        Raises ChatError, SpecError if a run or a task uses the device.
        """
        self.plan = plan
        names = " and ".join(side.label for side in plan.sides)
        self._reservation = queue.reserve(home, plan.device, "chat", f"the chat with {names}")
        self._asking = threading.Lock()
        environment = launch.environment(self._reservation.device)
        self._child = Child("core.workers.chat", Limits(), environment=environment)
        try:
            self._reservation.attach(self._child.pid)
            self.notes = plan.notes + tuple(self._load(idle_seconds)["notes"])
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """Process of the program."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child.is_running

    @property
    def is_answering(self) -> bool:
        return self._asking.locked()

    def ask(
        self, conversations: Sequence[Sequence[ChatMessage] | None], settings: AnswerSettings
    ) -> Iterator[AnswerPiece | FinishedAnswer]:
        """Yield the pieces of the answers of each side to its conversation, one side after another.

        A side without a conversation is not asked. An iterator that is closed early stops the
        answers. Raises ChatEnded if the program had ended before it read this, ChatError.
        """
        if not self._asking.acquire(blocking=False):
            problem = "another conversation is being answered on this device"
            raise ChatError(Problem("chat", problem, "try again when it has ended, or stop it"))
        request = {
            "do": "ask",
            "conversations": list(conversations),
            "settings": asdict(settings),
        }
        # Kept by name, because a generator without a reference is closed before it is drained.
        replies = self._replies(self._child.follow(request, SECONDS_TO_ANSWER))
        has_begun = False
        try:
            for reply in replies:
                has_begun = True
                if "piece" in reply:
                    yield AnswerPiece(reply["side"], reply["piece"])
                elif "finished" in reply:
                    yield FinishedAnswer(reply["side"], **reply["finished"])
        except GeneratorExit:
            self._drain(replies)
            raise
        except ChatError as error:
            if has_begun or self.is_running:
                raise
            raise ChatEnded(*error.problems) from None
        finally:
            self._asking.release()

    def stop(self) -> None:
        """Ask for the end of the answers. The pieces so far stay."""
        with suppress(ChildError):
            self._child.tell({"do": "stop"})

    def end(self) -> None:
        """End the program: it frees everything that it holds. Safe to call twice."""
        self._child.kill()
        with suppress(SpecError, OSError):  # the death of the program frees the device too
            self._reservation.release()

    def why_ended(self) -> ChatError:
        """Return why the program has ended, and end what is left of it."""
        is_lost, code = self._reservation.is_lost(), self._child.returncode
        reason, fix = f"the chat program ended with code {code}", "ask again to load it again"
        if is_lost:
            (problem,) = self._reservation.error().problems
            reason, fix = f"the chat has ended: {problem.problem}", problem.fix
        elif code == IDLE_EXIT_CODE:
            reason = "the chat has ended after 10 minutes without a message"
        elif code is not None and code < 0:
            reason = "the chat program was killed, by a user or because memory was full"
        self.end()
        return ChatError(Problem("chat", reason, fix))

    def _load(self, idle_seconds: float) -> dict[str, Any]:
        plan = self.plan
        models = []
        for model in plan.models:
            files = {"weights": model.weights, "gguf": model.gguf, "tools": model.tools}
            paths = {name: str(path) if path else None for name, path in files.items()}
            models.append({"job": json.loads(model.job.to_json()), **paths})
        sides = []
        for side, place in zip(plan.sides, plan.places, strict=True):
            sides.append({"model": place, "uses_adapter": side.has_adapter, "name": side.label})
        request = {
            "do": "load",
            "models": models,
            "sides": sides,
            "num_loaded": plan.num_loaded,
            "num_tokens": plan.num_tokens,
            "idle_seconds": idle_seconds,
        }
        for reply in self._replies(self._child.follow(request, SECONDS_TO_LOAD)):
            if "answer" in reply:
                return dict(reply["answer"])
        raise AssertionError("a reply is followed up to its answer")

    def _replies(self, replies: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the replies. Raises ChatError where the child refuses or has ended."""
        try:
            yield from replies
        except ChildError as error:
            if error.cause == "refused":
                raise ChatError(*error.problems) from None
            if error.cause == "died":
                raise self.why_ended() from None
            self.end()
            problem = Problem("chat", f"the chat program {error.reason}", "ask again")
            raise ChatError(problem) from None

    def _drain(self, replies: Iterator[dict[str, Any]]) -> None:
        """Stop the answers and read what the child still says, so that the next request is not
        mixed up with it."""
        self.stop()
        timer = threading.Timer(SECONDS_TO_STOP, self._child.interrupt)
        timer.start()
        with suppress(ChatError):
            for _reply in replies:
                pass
        timer.cancel()
