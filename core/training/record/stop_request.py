"""Request to end the run early: SIGTERM, SIGINT or a file named `stop` in the run folder. Never
ends anything itself once there is something to save.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..contract.failures import Stopped
from ..ranks import Rank, end_as_told

SECONDS_BETWEEN_CHECKS = 0.2
LOOKS_FOR_FOLDER = 3
EXIT_OF_A_RANK = 143


class StopRequest:
    """Request to end the run early.

    Before the first step there is nothing to save: the request interrupts the main thread, which
    raises Stopped. After `defer` it only sets `is_set`; the trainer then ends after the current
    step, with a checkpoint.

    Of several ranks, each sees the file. A signal without the file comes from torchrun: another
    rank is gone, and this one can only end.
    """

    def __init__(self, file: Path, rank: Rank | None = None):
        self._is_one_of_several = rank is not None and not rank.is_alone
        self.is_obeyed = False
        """True once the trainer has ended early because of the request."""
        self._file = file
        self._is_signalled = False
        self._may_interrupt = True

    @property
    def is_set(self) -> bool:
        """True once a signal has arrived or the file exists."""
        return self._is_signalled or self._file.exists()

    def defer(self) -> None:
        """Interrupt nothing from now on."""
        self._may_interrupt = False

    def raise_if_set(self) -> None:
        """Raise Stopped if there is a request and nothing to save."""
        if self._may_interrupt and self.is_set:
            self._interrupt()

    @contextmanager
    def handle_signals(self, on_set: Callable[[], None]) -> Iterator[None]:
        """Handle SIGTERM, SIGINT and the file in this block. `on_set` is called once, in another
        thread.

        Does nothing outside the main thread, which alone can handle signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        is_over = threading.Event()
        watcher = threading.Thread(
            target=self._watch, args=(on_set, is_over), name="stop watcher", daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _watch(self, on_set: Callable[[], None], is_over: threading.Event) -> None:
        while not is_over.wait(SECONDS_BETWEEN_CHECKS):
            self._end_without_folder()
            if self.is_set:
                on_set()
                if self._may_interrupt and not self._is_signalled:
                    _interrupt_main_thread()
                return

    def _end_without_folder(self) -> None:
        """End this process at once if the run folder was removed: nothing can be saved.

        A folder that is seen again at once was on a network disk that was away for a moment.
        """
        folder = self._file.parent
        for _look in range(LOOKS_FOR_FOLDER):
            try:
                folder.stat()
                return
            except FileNotFoundError:
                time.sleep(SECONDS_BETWEEN_CHECKS)
            except OSError:
                return
        print(f"{folder} was removed: the training ends.", flush=True)
        os._exit(1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_one_of_several and not self._file.exists():
            end_as_told(EXIT_OF_A_RANK)
        # A second signal must not interrupt the saving that the first one asked for.
        is_first = not self._is_signalled
        self._is_signalled = True
        if is_first and self._may_interrupt:
            self._interrupt()

    def _interrupt(self) -> None:
        self.defer()
        raise Stopped


def _interrupt_main_thread() -> None:
    """Send this process a SIGTERM. It also wakes the main thread from a system call."""
    if sys.platform == "win32":
        import _thread

        _thread.interrupt_main(signal.SIGTERM)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
