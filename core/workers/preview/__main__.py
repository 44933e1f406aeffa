"""A program that shows rows as a model will see them, and how long they are. Loads a tokenizer, never a model.

Run `python -m core.workers.preview`: one JSON request a line on standard input, one answer a line on standard output,
until the input ends. Once asked for lengths it measures rows between requests, a sample first, then all.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from core.training.contract.failures import TrainingError, explain
from core.workers.hub import stay_offline_without_answer

if TYPE_CHECKING:
    from .session import View

MEMORY_BYTES = 4 * 2**30


class Program:
    """Answers requests, and measures while there are none."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._view: View | None = None
        self._requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def run(self, requests: TextIO) -> None:
        """Until there are no more requests."""
        threading.Thread(target=self._listen, args=(requests,), daemon=True).start()
        is_measuring = False
        while True:
            try:
                request = self._requests.get(block=not is_measuring)
            except queue.Empty:
                is_measuring = self.view.measure()
                continue
            if request is None:
                return
            self._output.write(json.dumps(self._answer(request)) + "\n")
            self._output.flush()
            is_measuring = (
                self._view is not None
                and request["do"] != "rest"
                and (is_measuring or request["do"] == "lengths")
            )

    @property
    def view(self) -> "View":
        """What was loaded. Raises TrainingError."""
        if self._view is None:
            raise TrainingError("Nothing is loaded.")
        return self._view

    def load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Another file or another tokenizer; returns what is known of it."""
        if not Path(request["model"]).is_dir():
            stay_offline_without_answer()
        from .session import View

        self._view = None
        self._view = View(request)
        return self._view.about()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"answer": ANSWERS[request["do"]](self, request)}
        except Exception as error:
            return {"error": explain(error, str(request.get("model", "the model")), "load")}

    def _listen(self, requests: TextIO) -> None:
        for line in requests:
            self._requests.put(json.loads(line))
        self._requests.put(None)


ANSWERS: Mapping[str, Callable[[Program, Mapping[str, Any]], Any]] = MappingProxyType(
    {
        "load": Program.load,
        "rows": lambda program, ask: program.view.show(
            ask["first"], ask["count"], ask["max_length"]
        ),
        "index": lambda program, ask: program.view.rows.index(ask["line"]),
        "search": lambda program, ask: program.view.search(ask["text"], ask["first"], ask["most"]),
        "lengths": lambda program, ask: program.view.lengths.since(ask["first"]),
        "rest": lambda program, ask: None,
    }
)


def main() -> None:
    """Answers what is asked on standard input."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # hidden: a tokenizer needs none of its 200 MB
    if os.name == "posix":
        _limit()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    Program(answers).run(sys.stdin)


def _limit() -> None:
    """Takes from this process what a hostile template could make it use. Windows has no such limits."""
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
