"""Probe: does a node see a folder of this machine? Asked before a run is sent there.

A node looks for a file that was written a moment ago. Only a node that answers within seconds can
say no: where none is free, submit.sh looks once the run has its turn.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from core.job import Problem
from core.training.contract.files import write_text

FIX = "put --home on storage that all nodes see, such as your home folder on the cluster"
BlindNodes = Callable[[Path], Sequence[str]]
"""Returns the names of those nodes that have looked for a file, and do not see it."""


def why_not_seen(folder: Path, blind_nodes: BlindNodes) -> Problem | None:
    """Return what is wrong if a node says that it does not see a folder."""
    token = secrets.token_hex(16)
    # A new name each time: a node on network storage may remember that an old one was not there.
    path = folder / f"probe-{token[:8]}.txt"
    with suppress(OSError):  # on a full disk the start of the run says so
        try:
            write_text(path, f"{path.stem}\n")
            blind = blind_nodes(path)
        finally:
            path.unlink(missing_ok=True)
        if blind:
            return Problem("home", f"{' and '.join(blind)} does not see {folder}", FIX)
    return None
