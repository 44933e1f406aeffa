"""Answer suites of tests with a trained model and with the model before, or with an export of it.
Judges no answer.

Run `python -m core.workers.checks`, which core/workers/child.py serves.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.job import Problem
from core.training.contract.failures import TrainingError, diagnose
from core.training.data.hub import stay_offline_without_answer
from core.workers.child import Reporter, serve
from core.workers.quick_imports import quick_imports

from .exported import ExportSession


def answer(request: Mapping[str, Any], report: Reporter) -> object:
    """Return the answers that a request asks for."""
    if "export" in request:
        return ExportSession.of(request, report).run()
    if not Path(request["job"]["model"]).is_dir():
        stay_offline_without_answer()
    # Imported only now, when it is known whether the Hub answers.
    with quick_imports():
        from .session import CheckSession

    return CheckSession.of(request, report).run()


def explain(error: Exception, request: Mapping[str, Any]) -> Problem:
    """Return an error in words."""
    if isinstance(error, TrainingError):
        text, _, fix = str(error).rstrip(".").rpartition(": ")
        if text:
            return Problem("check", text, fix)
    sentence = diagnose(error, request["job"]["model"], "generation").sentence
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return Problem("check", sentence.rstrip("."), "see whether the run itself still works")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
    serve(answer, explain)
