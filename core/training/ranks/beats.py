"""Beats of a rank to its guard: one byte a second over a pipe, from a thread of its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import guard
from .guard import BEAT, GOODBYE, STANDS_STILL, TOLD_TO_END
from .rank import Rank
from .standstill import Standstill

SECONDS_BETWEEN_BEATS = 1.0
SECONDS_FOR_GOODBYE = 5.0
MOST_GUARDS = 3
"""A guard that was killed is started again, but not for ever."""


class Beats:
    """Pipe from this process to its guard, a child of it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._num_guards = 0
        self._guard = self._start()

    def give(self, sign: bytes) -> None:
        """Give the guard a sign. Starts another guard if it is gone."""
        if not self.send(sign) and self._num_guards < MOST_GUARDS:
            self._close()
            self._guard = self._start()

    def end(self) -> None:
        """Say goodbye, and wait until the guard has told the others."""
        self.send(GOODBYE)
        if self._guard:
            with suppress(subprocess.TimeoutExpired):
                self._guard.wait(SECONDS_FOR_GOODBYE)
        self._close()

    def send(self, sign: bytes) -> bool:
        """Return True if a guard is there to read a sign."""
        if self._guard is None or self._guard.stdin is None:
            return False
        try:
            return bool(os.write(self._guard.stdin.fileno(), sign))
        except OSError:
            return False

    def _close(self) -> None:
        if self._guard and self._guard.stdin:
            self._guard.stdin.close()

    def _start(self) -> "subprocess.Popen[bytes] | None":
        self._num_guards += 1
        try:
            return subprocess.Popen(
                guard.command(),
                cwd=self._folder,
                stdin=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # torchrun ends whole sessions
            )
        except OSError as error:
            print(f"Nobody watches whether this process hangs: {error.strerror}.", flush=True)
            return None


_beats: list[Beats] = []
"""The beats of this process, while a guard watches it."""


@contextmanager
def guarded(folder: Path, rank: Rank, standstill: Standstill) -> Iterator[None]:
    """Let a guard watch over this process in this block. Does nothing where a leader does."""
    if rank.is_alone or rank.leader or sys.platform == "win32":
        yield
        return
    beats = Beats(folder)
    _beats.append(beats)
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(SECONDS_BETWEEN_BEATS):
            beats.give(STANDS_STILL if standstill.words else BEAT)

    thread = threading.Thread(target=beat, name="beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _beats.clear()
        beats.end()


def end_as_told(code: int) -> None:
    """End this process at once, because torchrun says so: another rank is the cause."""
    for beats in _beats:
        beats.send(TOLD_TO_END)
    os._exit(code)
