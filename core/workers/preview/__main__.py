"""Show rows as a model will see them, and measure them. Loads a tokenizer, never a model.

Run `python -m core.workers.preview`, which core/workers/child.py serves. Once it is asked for
lengths, it measures rows between requests: a sample first, then all.
"""

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.job import Problem
from core.training.contract.failures import TrainingError, diagnose
from core.training.data.hub import stay_offline_without_answer
from core.workers.child import Reporter, serve

if TYPE_CHECKING:
    from .session import PreviewSession


SECONDS_OF_SEARCHING = 1.0
"""Longest search of one answer."""


class PreviewProgram:
    """Answers requests about the file that was loaded last."""

    def __init__(self) -> None:
        self._session: PreviewSession | None = None
        self._is_measuring = False

    @property
    def session(self) -> "PreviewSession":
        """Session that was loaded. Raises TrainingError."""
        if self._session is None:
            raise TrainingError("Nothing is loaded.")
        return self._session

    def answer(self, request: Mapping[str, Any], _report: Reporter) -> object:
        """Return what one request asks for."""
        found = ANSWERS[request["do"]](self, request)
        if request["do"] in ("lengths", "rest"):
            self._is_measuring = request["do"] == "lengths"
        return found

    def measure(self) -> bool:
        """Measure some more rows, if they were asked for; return whether there are more."""
        if self._is_measuring:
            self._is_measuring = self.session.measure()
        return self._is_measuring

    def load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Load another file or another tokenizer and return what is known of it."""
        if not Path(request["model"]).is_dir():
            stay_offline_without_answer()
        # Imported only now, when it is known whether the Hub answers.
        from .session import PreviewSession

        self._session = None
        self._session = PreviewSession(request)
        return self._session.info()


ANSWERS: Mapping[str, Callable[[PreviewProgram, Mapping[str, Any]], object]] = MappingProxyType(
    {
        "load": PreviewProgram.load,
        "rows": lambda program, ask: program.session.show(
            ask["first"], ask["count"], ask["max_length"]
        ),
        "index": lambda program, ask: program.session.rows.index(ask["line"]),
        "find": lambda program, ask: program.session.rows.find(
            ask["text"], ask["first"], SECONDS_OF_SEARCHING
        ),
        "lengths": lambda program, ask: program.session.lengths.since(ask["first"]),
        "rest": lambda program, ask: None,
    }
)


def main() -> None:
    """Answer requests on standard input."""
    # Hide torch: a tokenizer does not need its 200 MB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a template that never does
    program = PreviewProgram()
    serve(program.answer, _explain, program.measure)


MODEL_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "offline": "connect this machine to the network, or choose a model that is on it",
        "gated_model": "do that, or choose a model that anyone may download",
        "model_not_found": "check its name, or choose another model",
        "bad_tokenizer": "download the model again, or choose another",
    }
)
"""Cause of a failure that lies in the model -> what to do."""


def _explain(error: Exception, request: Mapping[str, Any]) -> Problem:
    failure = diagnose(error, str(request.get("model", "the model")), "load")
    reason = failure.sentence.rstrip(".")
    if failure.cause in MODEL_FIXES:
        return Problem("model", reason, MODEL_FIXES[failure.cause])
    fix = "check the file, or choose a model with a tokenizer"
    return Problem("dataset", f"the rows cannot be shown: {reason}", fix)


if __name__ == "__main__":
    main()
