"""Thresholds: how many tests of a suite must pass, as `identity=95,capabilities=34` says."""

import re
from collections.abc import Iterable, Mapping

from core.job import Problem, SpecError

FORM = re.compile(r"\s*([^=,]{1,200}?)\s*=\s*(\d{1,6})\s*")
FIX = "write identity=95,capabilities=34"
SHOWN_CHARACTERS = 60


def read_thresholds(text: str, suites: Iterable[str]) -> Mapping[str, int]:
    """Return suite -> number of tests that must pass. Raises SpecError.

    `suites` are the names of the suites that run.
    """
    known = tuple(suites)
    found: dict[str, int] = {}
    for part in text.split(",") if text.strip() else ():
        match = FORM.fullmatch(part)
        if match is None:
            shown = part.strip()[:SHOWN_CHARACTERS]
            raise SpecError(Problem("at-least", f"{shown!r} is no threshold", FIX))
        name, number = match[1], int(match[2])
        if name not in known:
            fix = f"name one of {', '.join(known)}"
            raise SpecError(Problem("at-least", f"no suite {name} runs", fix))
        found[name] = number
    return found
