"""Keep the open comparisons of a home going, and write the report of each once it has ended."""

import threading
import time
import traceback
from contextlib import suppress

from core.after_training.compare import conduct, record
from core.after_training.compare.report import write_report
from core.job import SpecError
from core.runs import Home

SECONDS_BETWEEN_ADVANCES = 2.0


class Keeper:
    """Conductor of every open comparison of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._closed: dict[str, int] = {}
        """File -> its version, of those that hold no open comparison. They are not read again."""

    def advance(self) -> None:
        """Do what is due in each open comparison. On a full disk, try again later."""
        for path in sorted(record.folder_of(self.home).glob("*.json")):
            with suppress(SpecError, OSError):
                version = path.stat().st_mtime_ns
                try:
                    self._advance(path.stem, version)
                except (ValueError, TypeError, KeyError):  # a record that was edited by hand
                    traceback.print_exc()
                    self._closed[path.stem] = version

    def _advance(self, comparison_id: str, version: int) -> None:
        if self._closed.get(comparison_id) == version:
            return
        try:
            comparison = record.read_comparison(self.home, comparison_id)
        except SpecError:  # a report, or a damaged file
            self._closed[comparison_id] = version
            return
        if not comparison.is_open:
            self._closed[comparison_id] = version
            return
        comparison = conduct.advance(self.home, comparison)
        if not comparison.is_open:
            write_report(self.home, comparison)


def keep_advancing(home: Home) -> threading.Thread:
    """Carry the comparisons of a home on in the background, until this process ends."""
    keeper = Keeper(home)

    def advance_forever() -> None:
        while True:
            keeper.advance()
            time.sleep(SECONDS_BETWEEN_ADVANCES)

    thread = threading.Thread(target=advance_forever, name="comparisons", daemon=True)
    thread.start()
    return thread
