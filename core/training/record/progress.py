"""The progress of what takes long before the first step, told to the record: downloads, tokenising, loading weights.

All libraries show it with tqdm, whose bars mean nothing in a log; so without a terminal none is drawn.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

from ..contract.status import Progress
from .run_files import Record

_NOWHERE = io.StringIO()


@contextmanager
def telling(record: Record) -> Iterator[None]:
    """While this lasts, the record knows how far each progress bar of any library is.

    `display` is what tqdm offers to be replaced: it is called at most ten times a second for each bar.
    """
    draw: Callable[..., Any] = tqdm.display
    has_terminal = sys.stderr.isatty()

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> Any:
        if record.status.phase != "train" and msg is None and bar.n:
            record.update(
                progress=Progress(
                    (bar.desc or "working").rstrip(": "), bar.n, bar.total, bar.unit.strip()
                )
            )
        if has_terminal:
            return draw(bar, msg, pos)
        bar.fp = _NOWHERE  # or it would end its bar with an empty line in the log
        return False

    if not has_terminal:
        os.environ.setdefault(
            "TQDM_POSITION", "-1"
        )  # or the bars of downloads would not even count
    tqdm.display = display
    try:
        yield
    finally:
        tqdm.display = draw
