"""Ranks that are stuck: once no rank gets on any more, find the one that the others wait for.

Used by the leader, and by the guard of rank 0. Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.failures import ACTIVITIES

STUCK = "stuck"
"""Name of this cause in status.json."""
RESUME = "The logs show where each stands. Resume the run: it continues from its last checkpoint."


@dataclass(frozen=True)
class Stuck:
    """Why no rank gets on."""

    ranks: Sequence[int]
    """Ranks that are the cause; all of them if they wait for each other."""
    sentence: str


def find_stuck(words: Mapping[int, Mapping[str, Any]], names: Mapping[int, str]) -> Stuck:
    """Return why no rank gets on. `words`: what each says of itself, as Standstill.words."""
    causes = _causes(words)
    first = causes[0]
    seconds = min(int(each["seconds"]) for each in words.values())
    if len(causes) == len(words) > 1:
        places = " and ".join(f"process {index + 1} {_where(words[index])}" for index in causes[:2])
        said = f"The processes wait for each other, for {seconds} s: {places}"
        return Stuck(causes, f"{said}. All were ended. {RESUME}")
    said = f"{names[first]}, has come no further for {seconds} s {_where(words[first])}"
    if len(causes) > 1:
        said += f", nor have {len(causes) - 1} others"
    if len(causes) < len(words):
        said += "; the others waited for it"
    return Stuck(causes, f"{said}, so all were ended. {RESUME}")


def _causes(words: Mapping[int, Mapping[str, Any]]) -> Sequence[int]:
    """Return the ranks that wait for no other, of several those that are behind.

    All, if each waits for another: for a number, say, that the other never sends.
    """
    busy = [index for index in sorted(words) if not words[index]["waits"]]
    if not busy:
        return sorted(words)
    least = min(int(words[index]["parts"]) for index in busy)
    return [index for index in busy if int(words[index]["parts"]) == least]


def _where(words: Mapping[str, Any]) -> str:
    activity = ACTIVITIES.get(str(words["activity"]), "while training")
    return f"{activity} ({words['place']})"
