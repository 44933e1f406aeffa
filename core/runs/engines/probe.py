"""Probe: does a node see a folder of this machine? Asked before a run is sent there.

The node prints a file that was written a moment ago, and its own name. Only a node that answers
within seconds can say no: where none is free, submit.sh looks once the run has its turn.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from core.job import Problem
from core.training.contract.files import write_text

NAME_OF_NODE = "/proc/sys/kernel/hostname"
FIX = "put --home on storage that all nodes see, such as your home folder on the cluster"
Ask = Callable[[Sequence[str]], Sequence[str]]
"""Runs a command on free nodes, and returns what it prints on each one that answered."""


def why_not_seen(folder: Path, ask: Ask) -> Problem | None:
    """Return what is wrong if a node says that it does not see a folder."""
    token = secrets.token_hex(16)
    # A new name each time: a node on network storage may remember that an old one was not there.
    path = folder / f"probe-{token[:8]}.txt"
    with suppress(OSError):  # on a full disk the start of the run says so
        try:
            write_text(path, f"{token}\n")
            answers = ask(("cat", str(path), NAME_OF_NODE))
        finally:
            path.unlink(missing_ok=True)
        for printed in answers:
            if printed.strip() and token not in printed:
                node = printed.split()[-1]
                return Problem("home", f"the node {node} does not see {folder}", FIX)
    return None
