"""The run folder as the program sees it: status.json, metrics.jsonl and samples.jsonl, and the request to stop.

Knows nothing of models or of torch.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import psutil

from ..contract.failures import Failure, Stopped
from ..contract.files import write_json
from ..contract.process_id import read_boot_id
from ..contract.states import Phase
from ..contract.status import Status
from .journal import Journal

SPARE_BYTES = 64 * 1024
"""Kept on the disk, and given up for what must be said when it is full."""
SECONDS_BETWEEN_UPDATES = 0.5
SECONDS_BETWEEN_LOOKS = 0.2


SOON_ENOUGH = frozenset(
    {"step", "epoch", "last_step_time", "seconds_per_step", "progress", "phase_peak_bytes"}
    | {"peak_allocated_bytes", "peak_reserved_bytes"}
)
"""Fields that change all the time: they reach the disk twice a second, all others at once."""


class Record:
    """The one place that reads and writes the run folder's small files while training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.status = Status(
            pid=os.getpid(),
            pid_start_time=psutil.Process().create_time(),
            boot_id=read_boot_id(psutil.boot_time),
            started=time.time(),
            updated=time.time(),
        )
        self.may_stop_anywhere = True
        """True while there is nothing to save, so that a signal may end whatever is being done."""
        self.activity: str | None = None
        """Within a step: forward, backward or optimizer_step; for the words of a failure."""
        self._metrics = Journal(folder / "metrics.jsonl")
        self._samples = Journal(folder / "samples.jsonl")
        self._is_signalled = False
        self._lock = threading.RLock()
        self._spare = folder / ".spare"
        self._written = -math.inf
        self._began = time.monotonic()
        self._seconds_before = 0.0
        self._seam: int | None = None
        self._write_status()
        self._save_room()

    def enter(self, phase: Phase) -> None:
        """Says what is done next. Raises Stopped if an end was asked for while there is nothing to save."""
        self.update(phase=phase)
        if self.may_stop_anywhere and self.is_stop_requested():
            raise Stopped

    def update(self, **changes: Any) -> None:
        """Changes fields of the status; news are on disk at once, what changes all the time twice a second.

        A disk that is full takes the news in the room that was kept for them; it ends nothing.
        """
        if changes.get("state") == "running" and self.is_stop_requested():
            changes["state"] = "stopping"
        with self._lock:
            before = self.status
            if "phase" in changes and changes["phase"] != before.phase:
                changes.setdefault("progress", None)
            self.status = replace(before, **changes)
            is_news = any(
                getattr(before, name) != value
                for name, value in changes.items()
                if name not in SOON_ENOUGH
            )
            if is_news or time.monotonic() - self._written >= SECONDS_BETWEEN_UPDATES:
                try:
                    self._write_status()
                except OSError:
                    if is_news:
                        self._write_status_in_spare_room()

    def note(self, sentence: str) -> None:
        """Says what is done otherwise than asked: in the log, and in the status for good."""
        say(sentence)
        self.update(notes=(*self.status.notes, sentence))

    def warn(self, sentence: str) -> None:
        """Says what is wrong while the run goes on. It stays a note when the warning is over."""
        self.note(sentence)
        self.update(warning=sentence)

    def fail(self, failure: Failure) -> None:
        """Says why the run has failed."""
        self.update(
            state="failed",
            error=failure.sentence,
            cause=failure.cause,
            needed_bytes=failure.needed_bytes,
            free_bytes=failure.free_bytes,
        )

    def append_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Adds a line to metrics.jsonl. Numbers that JSON does not have are left out and named in `nonfinite`.

        The first line after a resume says `resumed_from`: the step of the checkpoint.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row: dict[str, object] = {
            "step": step,
            "epoch": round(epoch, 6),
            "time": round(self.seconds(), 3),
            **finite,
        }
        if nonfinite := [name for name in values if name not in finite]:
            row["nonfinite"] = nonfinite
        if self._seam is not None:
            row["resumed_from"], self._seam = self._seam, None
        self._metrics.append(row)

    def append_sample(self, step: int, prompt: str, answer: str) -> None:
        """Adds an answer of the model to samples.jsonl."""
        self._samples.append({"step": step, "prompt": prompt, "answer": answer})

    def seconds(self) -> float:
        """Seconds that the run has trained, in this life and in those before it."""
        return self._seconds_before + time.monotonic() - self._began

    def rewind(self, step: int | None, *, has_all_steps: bool = False) -> int:
        """Forgets what an earlier life wrote after the checkpoint of a step, takes over its clock; returns its number
        of tokens.

        None is a beginning. If only the result is missing (`has_all_steps`), the answers at the end are given anew.
        """
        is_resumed = step is not None
        step = step or 0
        self._samples.rewind(step - 1 if has_all_steps else step)
        kept = self._metrics.rewind(step)
        self._seconds_before = max((float(row["time"]) for row in kept), default=0.0)
        if is_resumed:
            self._seam = step
            seams = [int(row["resumed_from"]) for row in kept if "resumed_from" in row]
            self.update(resumed_at=(*seams, step))
        return max((int(row.get("num_tokens", 0)) for row in kept), default=0)

    def close(self) -> None:
        """Gives up the room that was kept: all is said."""
        with suppress(OSError):
            self._spare.unlink()

    def sync(self) -> None:
        """Waits until what was written so far would survive a power cut."""
        self._metrics.sync()
        self._samples.sync()

    def has_sample(self, step: int) -> bool:
        """True if samples.jsonl holds an answer of that step."""
        return any(row["step"] == step for row in self._samples.rows())

    def is_stop_requested(self) -> bool:
        """True once a signal came or the file `stop` is there."""
        return self._is_signalled or (self.folder / "stop").exists()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM, SIGINT and the file `stop` ask for an end while this lasts. Only a main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        is_over = threading.Event()
        watcher = threading.Thread(
            target=self._acknowledge, args=(is_over,), name="stop watcher", daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _acknowledge(self, is_over: threading.Event) -> None:
        """Says `stopping` as soon as an end is asked for, and ends what may be ended anywhere."""
        while not is_over.wait(SECONDS_BETWEEN_LOOKS):
            if not self.is_stop_requested():
                continue
            with self._lock:
                if self.status.state in ("starting", "running"):
                    self.update(state="stopping")
            if self.may_stop_anywhere and not self._is_signalled:
                _interrupt_main_thread()
            return

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Only the first signal ends anything: a second one must not break into the saving that it asked for."""
        is_first, self._is_signalled = not self._is_signalled, True
        if is_first and self.may_stop_anywhere:
            raise Stopped

    def _write_status_in_spare_room(self) -> None:
        with suppress(OSError):
            self._spare.unlink()
            self._write_status()
            self._save_room()

    def _save_room(self) -> None:
        with suppress(OSError):  # as much of it as there is
            self._spare.write_bytes(os.urandom(SPARE_BYTES))  # which no file system can compress

    def _write_status(self) -> None:
        self._written = time.monotonic()
        self.status = replace(self.status, updated=time.time(), seconds=round(self.seconds(), 3))
        write_json(self.folder / "status.json", self.status.to_json())


def say(sentence: str, to: TextIO | None = None) -> None:
    """Prints to the log; a log that cannot be written ends nothing."""
    with suppress(OSError):
        print(sentence, file=to, flush=True)


def _interrupt_main_thread() -> None:
    """As a SIGTERM from outside would: it also wakes the thread from a system call."""
    if sys.platform == "win32":
        import _thread

        _thread.interrupt_main(signal.SIGTERM)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
