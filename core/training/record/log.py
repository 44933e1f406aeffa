"""The log: what this program and its libraries print goes to log.txt, which is kept from filling the disk over days.

Whoever started the program opened the file for appending, so it can be cut while it is written to: the next line goes
to the new end. On Windows a program does not inherit that; there all that print share one place in the file, which is
put to the new end. A log of any other kind, such as a terminal's, is left alone.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST_BYTES = 32 * 2**20
HEAD_BYTES, TAIL_BYTES = 2**20, 4 * 2**20
"""What is left of a log that grew larger: how it began, and what came last."""
SECONDS_BETWEEN_LOOKS = 1.0
NEEDS_APPENDING = sys.platform != "win32"


@contextmanager
def kept_short(path: Path) -> Iterator[None]:
    """While this lasts, a log that outgrows MOST_BYTES loses its middle."""
    if not _can_be_cut(path):
        yield
        return
    is_over = threading.Event()
    keeper = threading.Thread(
        target=_keep_short, args=(path, is_over), name="log keeper", daemon=True
    )
    keeper.start()
    try:
        yield
    finally:
        is_over.set()
        keeper.join()


def shorten(path: Path) -> None:
    """Takes the middle out of a log that is too large, in whole lines. Raises OSError.

    The end is copied to its new place before the old one is cut off: whatever ends this, no end is lost. What is
    printed in the instant between the last look at the end and the cut is.
    """
    with path.open("rb+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size <= MOST_BYTES:
            return
        file.seek(0)
        head = file.read(HEAD_BYTES).rpartition(b"\n")[0] + b"\n"
        file.seek(size - TAIL_BYTES)
        tail = file.read(TAIL_BYTES).partition(b"\n")[2]
        left_out = size - len(head) - len(tail)
        file.seek(len(head))
        file.write(f"... {left_out:,} bytes are left out here ...\n".encode() + tail)
        end = file.tell()
        file.seek(size)
        printed_meanwhile = file.read()
        file.seek(end)
        file.write(printed_meanwhile)
        file.truncate()


def _keep_short(path: Path, is_over: threading.Event) -> None:
    while not is_over.wait(SECONDS_BETWEEN_LOOKS):
        with suppress(OSError):  # looked at again soon
            if path.stat().st_size > MOST_BYTES:
                shorten(path)
                if not NEEDS_APPENDING:
                    os.lseek(1, 0, os.SEEK_END)


def _can_be_cut(path: Path) -> bool:
    """True if the standard output of this process is that file, opened for appending where that counts."""
    try:
        is_here = os.path.samestat(os.fstat(1), path.lstat())
        return is_here and (not NEEDS_APPENDING or _is_appended_to())
    except OSError:
        return False


def _is_appended_to() -> bool:
    import fcntl

    return bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND)
