"""Places on the disk that jobs name: which of them may be read here, and within what time.

Opens no file by itself. A network disk that hangs holds up one thread and no request.
"""

import errno
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from core.job.errors import Problem, SpecError

Found = TypeVar("Found")
SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
"""Folders of the kernel: what looks like a file there may have no end, or wait for ever."""
SECONDS_TO_ANSWER = 5.0
ALL_FOLDERS: None = None
_allowed: ContextVar[Sequence[Path] | None] = ContextVar("allowed folders", default=ALL_FOLDERS)

_late: dict[Hashable, threading.Thread] = {}
"""What a call waits for -> the thread that still does, past its time."""


class TooLate(Exception):
    """A call did not return in time, or an earlier one still waits for the same."""


@contextmanager
def only_in(folders: Sequence[Path] | None) -> Iterator[None]:
    """Let jobs name files in these folders only, while this runs; None allows all folders.

    It holds for this thread alone, not for those that it starts.
    """
    before = _allowed.set(folders)
    try:
        yield
    finally:
        _allowed.reset(before)


def is_restricted() -> bool:
    """Return True while files may be read in named folders only: for those who are not the owner
    of this machine's account."""
    return _allowed.get() is not None


def allowed() -> tuple[Path, ...] | None:
    """Return the folders in which jobs may name files here, None for all."""
    folders = _allowed.get()
    return None if folders is None else tuple(folders)


def require_allowed(path: Path, field: str) -> None:
    """Raise SpecError if a file or folder may not be read here. It need not exist."""
    try:
        real = in_time(lambda: Path(os.path.realpath(path)), path)
    except OSError as error:
        raise SpecError(unanswered(field, path, error)) from None
    if any(real.is_relative_to(folder) for folder in SYSTEM_FOLDERS):
        fix = "give a file on a disk"
        raise SpecError(Problem(field, f"{path} is the system's and holds no data", fix))
    folders = _allowed.get()
    if folders is not None and not any(real.is_relative_to(each) for each in folders):
        problem = f"{path} is in no folder that this page may read for others"
        fix = "upload it, or have Tailor started with --data and its folder"
        raise SpecError(Problem(field, problem, fix))


def unanswered(field: str, path: Path, error: OSError) -> Problem:
    """Return the problem of a file that cannot be looked at."""
    fix = "check the disk that it is on, or give another"
    return Problem(field, f"{path} cannot be read: {error.strerror}", fix)


def is_there(path: Path, is_kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return True for a visible file. A name that is too long is False, not an error.

    So is a disk that does not answer in time.
    """
    try:
        return in_time(lambda: is_kind(path), path)
    except (OSError, ValueError):
        return False


def in_time(read: Callable[[], Found], path: Path, seconds: float = SECONDS_TO_ANSWER) -> Found:
    """Return what `read` returns, which looks at a path. Raises what it raises.

    Raises TimeoutError if that takes too long. Until it is over, nothing else in its folder is
    waited for.
    """
    try:
        return call_in_time(read, seconds, path.parent)
    except TooLate:
        raise TimeoutError(errno.ETIMEDOUT, "its disk does not answer", str(path)) from None


def call_in_time(call: Callable[[], Found], seconds: float, waits_for: Hashable) -> Found:
    """Return what a call returns. Raises what it raises.

    Raises TooLate if that takes too long. Until it is over, no other call waits for the same.
    """
    if (late := _late.get(waits_for)) and late.is_alive():
        raise TooLate
    found: list[Found] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # the caller gets it, in its own thread
            failed.append(error)

    thread = threading.Thread(target=run, name=f"wait for {waits_for}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _late[waits_for] = thread
        raise TooLate
    _late.pop(waits_for, None)
    if failed:
        raise failed[0]
    return found[0]


def unquoted(reference: str) -> str:
    """Return a path without the quotes and blanks that shells and file managers put around it."""
    reference = reference.strip()
    for quote in ("'", '"'):
        if len(reference) > 2 and reference[0] == reference[-1] == quote:
            return reference[1:-1]
    return reference
