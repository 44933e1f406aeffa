"""Answer conversations with one or two models, piece by piece, as JSON lines.

Run `python -m core.workers.chat`; core/after_training/chat/session.py is its parent. Requests:
`load`, `ask`, and `stop`, which is obeyed at once. Ends with its parent, and after some idle
minutes.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from core.device.child import Limits
from core.job import Problem
from core.training.contract.failures import diagnose
from core.training.data.hub import stay_offline_without_answer
from core.workers.child import apply_limits, send

from .loaded import LoadedModels, Side, free_memory
from .question import ChatQuestion

IDLE_EXIT_CODE = 3
"""As in core/after_training/chat/session.py."""
Request = Mapping[str, Any]


class ChatProgram:
    """Models that were loaded, and the answer that is being written."""

    def __init__(self, messages: TextIO) -> None:
        self.messages = messages
        self.stop = threading.Event()
        self.idle_seconds: float | None = None
        self._models: LoadedModels | None = None
        self._sides: tuple[Side, ...] = ()
        self._num_tokens = 0
        self._model_name = "the model"

    def load(self, request: Request) -> dict[str, object]:
        """Load the models. Return notes for users."""
        names = [each["job"]["model"] for each in request["models"] if not each["gguf"]]
        if not all(Path(name).is_dir() for name in names):
            stay_offline_without_answer()
        self._model_name = request["models"][0]["job"]["model"]
        self.idle_seconds = float(request["idle_seconds"])
        self._num_tokens = int(request["num_tokens"])
        self._sides = tuple(
            Side(each["name"], each["model"], each["uses_adapter"]) for each in request["sides"]
        )
        self._models = LoadedModels(request["models"], request["num_loaded"], self._num_tokens)
        self._models.load_first()
        return {"notes": self._notes()}

    def ask(self, request: Request) -> dict[str, object]:
        """Write the answers of all sides, one after another."""
        assert self._models
        send(self.messages, {"began": True})
        self.stop.clear()
        for index, (side, messages) in enumerate(
            zip(self._sides, request["conversations"], strict=True)
        ):
            if messages is None or self.stop.is_set():
                continue
            self._model_name = self._models.name_of(side.place)
            model = self._models.get(side.place)
            question = ChatQuestion(
                messages, side.uses_adapter, request["settings"], self._num_tokens, self.stop
            )
            finished = model.answer(question, self._piece_sender(index))
            send(self.messages, {"side": index, "finished": finished})
        return {}

    def explain(self, error: BaseException) -> Problem:
        """Return an error in words. Frees what a full card still holds."""
        failure = diagnose(error, self._model_name, "while it answered")
        if "memory" in failure.cause:
            free_memory()
            fix = "ask for fewer tokens, start a new conversation, or choose a smaller model"
        else:
            fix = FIXES.get(failure.cause, "ask again, or choose another model")
        return Problem("chat", failure.sentence.rstrip("."), fix)

    def _piece_sender(self, side: int) -> Callable[[str], None]:
        def send_piece(text: str) -> None:
            send(self.messages, {"side": side, "piece": text})

        return send_piece

    def _notes(self) -> list[str]:
        """Return what users should know of the models that are loaded."""
        assert self._models
        notes = []
        for place in dict.fromkeys(side.place for side in self._sides):
            if not self._models.has_template(place):
                name = self._models.name_of(place)
                notes.append(f"{name} has no chat template: it continues the text.")
        return notes


FIXES: Mapping[str, str] = MappingProxyType(
    {
        "gguf": "export it again",
        "llama": "ask again, or install llama.cpp again with `python app.py export --install`",
        "template": "leave the system prompt empty, or choose another model",
        "too_long": "shorten it, or start a new conversation",
        "offline": "connect this machine to the network, or choose a model that is on it",
        "gated_model": "do that, or choose a model that anyone may download",
        "model_not_found": "check its name, or choose another model",
    }
)
"""Cause of a failure -> what to do."""
ANSWERS: Mapping[str, Callable[[ChatProgram, Request], dict[str, object]]] = MappingProxyType(
    {"load": ChatProgram.load, "ask": ChatProgram.ask}
)


def main() -> None:
    """Answer requests on standard input until it ends, or until it was idle for long."""
    # Libraries print to standard output, those in C too, where only messages may go.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    apply_limits(Limits(**json.loads(sys.stdin.readline())))
    program = ChatProgram(messages)
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(program, requests), daemon=True).start()
    while True:
        try:
            request = requests.get(timeout=program.idle_seconds)
        except queue.Empty:
            os._exit(IDLE_EXIT_CODE)  # a usual exit would wait for the thread that listens
        try:
            found: dict[str, object] = {"answer": ANSWERS[request["do"]](program, request)}
        except Exception as error:  # from files, templates and models of strangers
            found = {"problem": asdict(program.explain(error))}
        send(messages, found)


def _listen(program: ChatProgram, requests: "queue.SimpleQueue[Request]") -> None:
    """Pass requests on. A stop is obeyed at once, and the end of the parent ends this program."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "stop":
            program.stop.set()
        else:
            requests.put(request)
    os._exit(0)  # at once, in the middle of an answer too


if __name__ == "__main__":
    main()
