"""Task of an export worker: its folder, its status, and requests to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from core.after_training.export import ExportStatus
from core.after_training.export.records import FILES, STATUS, STOP, AskedQuestion, ExportRequest
from core.training.contract.failures import Stopped
from core.training.contract.files import write_json

SECONDS_BETWEEN_REPORTS = 0.5
MIN_SHARE_TO_FORECAST = 0.02


class ExportTask:
    """One export under way. Writes status.json and looks for the file `stop`."""

    def __init__(self, folder: Path, request: ExportRequest) -> None:
        self.folder = folder
        self.request = request
        self.files = folder / FILES
        self.notes: list[str] = []
        """Sentences about the export for its user."""
        self.asked: tuple[AskedQuestion, ...] = ()
        """Questions of the verification."""
        self.phase = ""
        self._phase_started = 0.0
        self._reported = 0.0

    def enter(self, phase: str) -> None:
        """Begin a phase, named as users read it. Raises Stopped."""
        print(phase, flush=True)
        self.phase, self._phase_started = phase, time.monotonic()
        self._write(0.0)

    def report(self, share: float) -> None:
        """Say which share of the phase is done, a few times a second. Raises Stopped."""
        if share >= 1 or time.monotonic() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._write(share)

    def require_no_stop(self) -> None:
        """Raise Stopped if the user has asked for it."""
        if (self.folder / STOP).exists():
            raise Stopped

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Raise Stopped at a signal that ends a program: no phase is too long to be stopped."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            raise Stopped

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self, status: ExportStatus) -> None:
        """Write the last status."""
        write_json(self.folder / STATUS, asdict(status))

    def _write(self, share: float) -> None:
        self.require_no_stop()
        now = time.monotonic()
        self._reported = now
        left = None
        if share > MIN_SHARE_TO_FORECAST:
            left = (now - self._phase_started) * (1 - share) / share
        status = ExportStatus("running", self.phase, min(share, 1.0), left)
        write_json(self.folder / STATUS, asdict(status))
