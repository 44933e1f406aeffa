"""Keep the open comparisons of a home going: check their runs, and report once they have ended."""

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from filelock import Timeout

from core.after_training.compare import conduct, record
from core.after_training.compare.checking import check_next
from core.after_training.compare.record import Comparison
from core.after_training.compare.report import write_report
from core.job import SpecError
from core.runs import Home

SECONDS_BETWEEN_ADVANCES = 2.0
Act = Callable[[Home, Comparison], Comparison]


def carry_on(home: Home, comparison: Comparison) -> Comparison:
    """Do what is due in a comparison, and write its report once all has ended.

    Any process may do it, and dies without harm: what it has left is done by the next one. Raises
    SpecError, OSError.
    """
    comparison = conduct.advance(home, comparison)
    if comparison.is_reported or conduct.is_active(home, comparison):
        return comparison
    with suppress(Timeout), record.locked(home, seconds=0):
        comparison = record.read_comparison(home, comparison.id)
        if not comparison.is_reported and not comparison.is_open:
            write_report(home, comparison)
            comparison = replace(comparison, is_reported=True)
            record.save(home, comparison)
    return comparison


class Keeper:
    """Conductor of every comparison of a home that is open, or whose report is not written."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._closed: dict[str, int] = {}
        """File -> its version, of those that are over. They are not read again."""

    def advance(self) -> None:
        """Do what is due in each comparison. On a full disk, try again later."""
        self._act_on_each(carry_on)

    def check(self) -> None:
        """Check the runs of each comparison that are due. Takes as long as the checks take."""
        self._act_on_each(check_next)

    def _act_on_each(self, act: Act) -> None:
        for path in sorted(record.folder_of(self.home).glob("*.json")):
            with suppress(SpecError, OSError):
                version = path.stat().st_mtime_ns
                if self._closed.get(path.stem) == version:
                    continue
                try:
                    comparison = record.read_comparison(self.home, path.stem)
                    is_over = comparison.is_reported and not comparison.is_open
                except SpecError:  # a report, or a damaged file
                    is_over = True
                if is_over:
                    self._closed[path.stem] = version
                    continue
                try:
                    act(self.home, comparison)
                except (ValueError, TypeError, KeyError):  # a record that was edited by hand
                    traceback.print_exc()
                    self._closed[path.stem] = version


def keep_advancing(home: Home) -> tuple[threading.Thread, ...]:
    """Carry the comparisons of a home on in the background, until this process ends.

    A thread of its own checks runs: it waits for minutes.
    """
    keeper = Keeper(home)
    actions = {"comparisons": keeper.advance, "checks of comparisons": keeper.check}
    threads = []
    for name, act in actions.items():
        threads.append(threading.Thread(target=_repeat, args=(act,), name=name, daemon=True))
        threads[-1].start()
    return tuple(threads)


def _repeat(act: Callable[[], None]) -> None:
    while True:
        act()
        time.sleep(SECONDS_BETWEEN_ADVANCES)
