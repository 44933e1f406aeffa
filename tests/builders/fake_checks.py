"""Stand-in for core/workers/checks: answers at once, as the prompts say. Loads no model.

A test passes where its prompt names the side: `before`, `after` or both. `aaa` is answered by what
a hostile pattern cannot search, and `wait` by nothing.
"""

import time
from collections.abc import Mapping
from typing import Any

from core.job import Problem
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite
from core.workers.child import Reporter, serve

RIGHT, WRONG = "yes", "no"
WAIT = "wait"
PERPLEXITY = {"before": 20.0, "after": 2.0, "trained_rows": 1.9, "num_rows": 4}


def answer(request: Mapping[str, Any], report: Reporter) -> object:
    """Return the answers of both sides."""
    suites = [parse_suite(each["lines"].encode(), each["name"]) for each in request["suites"]]
    report(0.5)
    if any(WAIT in test.prompt for suite in suites for test in suite.tests):
        time.sleep(600)
    sides = {}
    for side in ("before", "after"):
        sides[side] = {suite.name: _answers(suite, side) for suite in suites}
    return {**sides, "cached": [], "perplexity": PERPLEXITY}


def _answers(suite: Suite, side: str) -> list[str]:
    answers = []
    for test in suite.tests:
        said = RIGHT if side in test.prompt else WRONG
        answers.append("a" * 40 + "!" if "aaa" in test.prompt else said)
    return answers


def explain(error: Exception, _request: Mapping[str, Any]) -> Problem:
    """Return an error in words."""
    return Problem("check", str(error), "correct the test")


if __name__ == "__main__":
    serve(answer, explain)
