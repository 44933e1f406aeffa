"""Ctrl-C before a command has begun: during its imports, and while the page is built. Imports
nothing that takes time.

Where these are interrupted, Python prints what it was doing, and libraries print more.
"""

import os
import signal
from types import FrameType

STOPPED = 130


def end_at_ctrl_c() -> None:
    """End the program at once at Ctrl-C, without a word: it has done nothing yet.

    A program that ignores Ctrl-C, such as a background job of a shell, still does.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def interrupt_at_ctrl_c() -> None:
    """Raise KeyboardInterrupt at Ctrl-C from now on, if `end_at_ctrl_c` has changed that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(STOPPED)
