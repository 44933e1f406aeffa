"""Size limit of log.txt, so that days of output do not fill the disk.

The launcher opens log.txt in append mode, so it can be shortened while the program prints: the next
line goes to the new end. Windows does not inherit that mode; there all writers share one file
position, which is moved to the new end. Any other output, such as a terminal, is left alone.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_BYTES = 32 * 2**20
HEAD_BYTES = 2**20
TAIL_BYTES = 4 * 2**20
"""A log that outgrows MAX_BYTES keeps its first HEAD_BYTES and its last TAIL_BYTES."""
SECONDS_BETWEEN_CHECKS = 1.0
NEEDS_APPEND_MODE = sys.platform != "win32"


@contextmanager
def limit_log_size(path: Path) -> Iterator[None]:
    """Shorten the log in this block whenever it outgrows MAX_BYTES."""
    if not _is_log_of_this_process(path):
        yield
        return
    is_over = threading.Event()
    limiter = threading.Thread(
        target=_check_regularly, args=(path, is_over), name="log limiter", daemon=True
    )
    limiter.start()
    try:
        yield
    finally:
        is_over.set()
        limiter.join()


def shorten(path: Path) -> None:
    """Remove the middle of a log that is too large, in whole lines. Raises OSError.

    The tail is copied to its new place before the old one is cut off, so a crash loses nothing of
    it. Output that arrives between the last read and the cut is lost.
    """
    with path.open("rb+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size <= MAX_BYTES:
            return
        file.seek(0)
        head = file.read(HEAD_BYTES).rpartition(b"\n")[0] + b"\n"
        file.seek(size - TAIL_BYTES)
        tail = file.read(TAIL_BYTES).partition(b"\n")[2]
        num_removed = size - len(head) - len(tail)
        file.seek(len(head))
        file.write(f"... {num_removed:,} bytes are left out here ...\n".encode() + tail)
        end = file.tell()
        file.seek(size)
        new_output = file.read()
        file.seek(end)
        file.write(new_output)
        file.truncate()


def _check_regularly(path: Path, is_over: threading.Event) -> None:
    while not is_over.wait(SECONDS_BETWEEN_CHECKS):
        _check(path)
    _check(path)  # output that came while the log was shortened may have made it large again


def _check(path: Path) -> None:
    with suppress(OSError):  # the next check may succeed
        if path.stat().st_size > MAX_BYTES:
            shorten(path)
            if not NEEDS_APPEND_MODE:
                os.lseek(1, 0, os.SEEK_END)


def _is_log_of_this_process(path: Path) -> bool:
    """Return True if standard output is this file, in a mode in which it can be shortened."""
    try:
        is_output = os.path.samestat(os.fstat(1), path.lstat())
        return is_output and (not NEEDS_APPEND_MODE or _is_in_append_mode())
    except OSError:
        return False


def _is_in_append_mode() -> bool:
    import fcntl

    return bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND)
