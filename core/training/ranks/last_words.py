"""Last words of the ranks: which one is the cause, where all end because one has ended.

Over several machines no leader watches the ranks: the first one finds out, and says it.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contract.failures import Failure
from ..contract.files import write_json
from .rank import HEARTBEATS, Rank, read_words

LOST_CONTACT = ("Connection closed by peer", "connection reset", "NCCL", "gloo", "TCPStore")
"""Parts of errors which only say that another rank is gone."""
SECONDS_TO_WAIT = 4.0
"""Time for another rank to leave its reason. One that lives has beaten since."""
SECONDS_BETWEEN_LOOKS = 0.2


def is_lost_contact(sentence: str) -> bool:
    """Return True for an error which only says that another rank is gone."""
    return any(part.casefold() in sentence.casefold() for part in LOST_CONTACT)


def first_cause(folder: Path, rank: Rank, failure: Failure) -> Failure:
    """Return why a rank of a run folder ends: its failure, or that of the one it has lost.

    Waits some seconds for the others.
    """
    if not is_lost_contact(failure.sentence):
        return replace(failure, sentence=f"{rank.name}: {failure.sentence}")
    begin, clock = time.time(), time.monotonic()
    while time.monotonic() - clock < SECONDS_TO_WAIT:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for words in _failures(folder, rank):
            names = {name: words.get(name) for name in ("needed_bytes", "free_bytes")}
            numbers = {name: each for name, each in names.items() if isinstance(each, int)}
            return Failure(str(words.get("cause")), str(words["sentence"]), **numbers)
    gone = [index for index in range(rank.count) if _is_silent(folder, index, begin)]
    who = _name(folder, gone[0], rank) if gone else "Another process"
    said = f"{who} was killed or has crashed, or its machine is gone, so all were ended."
    return Failure("signal", said)


def write_ending(folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Add to status.json of a run folder how the run ended, where rank 0 could not. Return all
    fields."""
    status = {**read_words(folder / "status.json"), **changes, "updated": time.time()}
    with suppress(OSError):
        write_json(folder / "status.json", status)
    if changes.get("error"):
        print(changes["error"], file=sys.stderr, flush=True)
    return status


def _name(folder: Path, index: int, rank: Rank) -> str:
    """Return the name that a rank has left in its heartbeat."""
    name = read_words(folder / HEARTBEATS / f"{index}.json").get("name")
    return f"{name}," if name else f"Process {index + 1} of {rank.count}"


def _failures(folder: Path, rank: Rank) -> Iterator[dict[str, object]]:
    """Yield the failures of the others that are causes."""
    for index in range(rank.count):
        words = read_words(folder / HEARTBEATS / f"{index}.failure.json")
        if index != rank.index and words and not is_lost_contact(str(words.get("sentence"))):
            yield words


def _is_silent(folder: Path, index: int, since: float) -> bool:
    """Return True for a rank that has not beaten since a Unix time, nor said that it ends."""
    heartbeat = folder / HEARTBEATS / f"{index}.json"
    try:
        return heartbeat.stat().st_mtime < since and not read_words(heartbeat).get("has_ended")
    except OSError:
        return False
