"""Search texts for regular expressions of strangers, within a time limit that holds.

A pattern such as (a+)+$ can keep Python busy for years, and nothing inside a process can stop it.
So the searches run in a process of their own, which a watchdog of C code ends.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

SECONDS_FOR_ONE = 1.0
SECONDS_TO_START = 30.0
MAX_TOO_SLOW = 10
"""Searches that may take too long; after them, every further one counts as too slow."""
PROGRAM = """\
import faulthandler, json, os, re, sys
pairs, seconds = json.load(sys.stdin)
nowhere = open(os.devnull, "w")
for pattern, text in pairs:
    faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    found = re.search(pattern, text) is not None
    faulthandler.cancel_dump_traceback_later()
    print(int(found), flush=True)
"""
"""Prints 1 or 0 for each pair, and ends at the first that takes too long."""


def search_all(
    pairs: Sequence[tuple[str, str]], seconds: float = SECONDS_FOR_ONE
) -> tuple[bool | None, ...]:
    """Return for each (pattern, text) whether it is found; None if that took too long."""
    found: list[bool | None] = []
    num_too_slow = 0
    while len(found) < len(pairs):
        answered = _search(pairs[len(found) :], seconds)
        found += answered
        if len(found) < len(pairs):
            found.append(None)
            num_too_slow += 1
        if num_too_slow == MAX_TOO_SLOW:
            found += [None] * (len(pairs) - len(found))
    return tuple(found)


def _search(pairs: Sequence[tuple[str, str]], seconds: float) -> list[bool]:
    """Return what one process found, up to the first search that took too long."""
    request = json.dumps([[*map(list, pairs)], seconds])
    try:
        output = subprocess.run(
            [sys.executable, "-I", "-c", PROGRAM],
            input=request.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS_TO_START + seconds * len(pairs),
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    return [line == b"1" for line in output.split()]
