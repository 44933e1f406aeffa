"""Draw one part of the page, so that a damaged file costs that part and not the page."""

import traceback
from collections.abc import Callable

from ui import render
from ui.events import Updates

UNREADABLE = render.notice("This part cannot be read: a file behind it is damaged.", "bad")


def guarded_updates(draw: Callable[[], Updates], instead: Updates) -> Updates:
    """Return what is updated, or `instead` if that fails. The terminal shows why."""
    try:
        return draw()
    except Exception:  # files may hold anything
        traceback.print_exc()
        return instead


def guarded(draw: Callable[[], str], instead: str = UNREADABLE) -> str:
    """Return what is drawn, or `instead` if that fails. The terminal shows why."""
    try:
        return draw()
    except Exception:  # files may hold anything
        traceback.print_exc()
        return instead
