"""Progress of what runs long before the first step: downloads, tokenizing, loading weights.

All libraries show it with tqdm. Bars make no sense in a log, so none are drawn without a terminal.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

from ..contract.status import Progress
from .run_files import RunFiles

_NOWHERE = io.StringIO()


@contextmanager
def tqdm_to_record(run_files: RunFiles) -> Iterator[None]:
    """Copy the progress of every tqdm bar into the status in this block.

    tqdm calls `display` at most ten times a second for each bar, and documents it as the method to
    override.
    """
    draw: Callable[..., Any] = tqdm.display
    has_terminal = sys.stderr.isatty()

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> Any:
        if run_files.status.phase != "train" and msg is None and bar.n:
            what = (bar.desc or "working").rstrip(": ")
            run_files.update(progress=Progress(what, bar.n, bar.total, bar.unit.strip()))
        if has_terminal:
            return draw(bar, msg, pos)
        bar.fp = _NOWHERE  # otherwise closing the bar writes an empty line into the log
        return False

    if not has_terminal:
        # Without a position huggingface_hub disables its bars, which then do not count either.
        os.environ.setdefault("TQDM_POSITION", "-1")
    tqdm.display = display
    try:
        yield
    finally:
        tqdm.display = draw
