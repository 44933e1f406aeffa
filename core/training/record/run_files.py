"""Files of the run folder that the program writes while it trains: status.json, metrics.jsonl and
samples.jsonl.

Knows nothing of models or of torch.
"""

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import psutil

from ..contract.failures import Failure
from ..contract.files import write_json
from ..contract.process_id import read_boot_id
from ..contract.status import Phase, Status
from ..ranks import Marks, Rank
from .journal import Journal
from .stop_request import StopRequest

SPARE_BYTES = 64 * 1024
"""Size of the spare file, which is deleted when the last words of a run need room on a full disk.
"""
SECONDS_BETWEEN_UPDATES = 0.5
# fmt: off
FREQUENT_FIELDS = frozenset({
    "step", "epoch", "last_step_time", "seconds_per_step", "progress", "phase_peak_bytes",
    "peak_allocated_bytes", "peak_reserved_bytes",
})
# fmt: on
"""Status fields that change all the time. They are written twice a second, all others at once."""
PARTS = frozenset({"phase", "step"})
"""Status fields that change on all ranks, where another part of the work begins."""


class RunFiles:
    """Status, metrics, samples and the stop request of one run."""

    def __init__(self, folder: Path, rank: Rank | None = None):
        self.folder = folder
        self.rank = rank or Rank()
        self.stop = StopRequest(folder / "stop", rank=self.rank)
        self.marks = Marks()
        self._activity: str | None = None
        pid = self.rank.leader or os.getpid()  # a run is known by the process that was started
        self.status = Status(
            pid=pid,
            pid_start_time=psutil.Process(pid).create_time(),
            boot_id=read_boot_id(psutil.boot_time),
            folder_inode=folder.stat().st_ino,
            started=time.time(),
            updated=time.time(),
        )
        self._metrics = Journal(folder / "metrics.jsonl")
        self._samples = Journal(folder / "samples.jsonl")
        self._spare_file = folder / ".spare"
        # The watcher thread of the stop request updates the status too, from within an update of
        # its own.
        self._lock = threading.RLock()
        self._written_at = -math.inf
        self._started_at = time.monotonic()
        self._seconds_before = 0.0
        self._resume_mark: int | None = None
        """Step of the checkpoint that the next line of metrics.jsonl names in `resumed_from`."""
        self._write_status()
        self._write_spare_file()

    @property
    def activity(self) -> str | None:
        """Part of the current step: forward, backward or optimizer_step. Used in the message of a
        failure."""
        return self._activity

    @activity.setter
    def activity(self, activity: str | None) -> None:
        self._activity = activity
        self.marks.begin(self.status.phase, activity or "")

    def enter(self, phase: Phase) -> None:
        """Begin a phase. Raises Stopped if a stop was requested while there is nothing to save."""
        self.update(phase=phase)
        self.stop.raise_if_set()

    def update(self, **changes: Any) -> None:
        """Change fields of the status. Never raises: on a full disk, important changes use the
        spare file's room."""
        if changes.get("state") == "running" and self.stop.is_set:
            changes["state"] = "stopping"
        with self._lock:
            before = self.status
            if "phase" in changes and changes["phase"] != before.phase:
                changes.setdefault("progress", None)
            self.status = replace(before, **changes)
            changed = {name for name, value in changes.items() if getattr(before, name) != value}
            if changed & PARTS:
                self.marks.begin(self.status.phase, self._activity or "")
            elif changed:
                self.marks.add()
            is_important = bool(changed - FREQUENT_FIELDS)
            if is_important or time.monotonic() - self._written_at >= SECONDS_BETWEEN_UPDATES:
                try:
                    self._write_status()
                except OSError:
                    if is_important:
                        self._write_status_without_spare_file()

    def note(self, sentence: str) -> None:
        """Record permanently that something is done differently from the job."""
        say(sentence)
        self.update(notes=(*self.status.notes, sentence))

    def warn(self, sentence: str) -> None:
        """Show a problem that does not end the run. It stays as a note after the warning is
        cleared."""
        self.note(sentence)
        self.update(warning=sentence)

    def fail(self, failure: Failure) -> None:
        """Record that the run has failed, and why."""
        self.update(
            state="failed",
            error=failure.sentence,
            cause=failure.cause,
            needed_bytes=failure.needed_bytes,
            free_bytes=failure.free_bytes,
        )

    def acknowledge_stop(self) -> None:
        """Show that the stop request was seen."""
        with self._lock:
            if self.status.state in ("starting", "running"):
                self.update(state="stopping")

    def append_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Add a line to metrics.jsonl.

        JSON has no NaN and no infinity: such values are left out and named in `nonfinite`. The
        first line after a resume has `resumed_from`, the step of the checkpoint.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row: dict[str, object] = {
            "step": step,
            "epoch": round(epoch, 6),
            "time": round(self.seconds(), 3),
            **finite,
        }
        if len(finite) < len(values):
            row["nonfinite"] = [name for name in values if name not in finite]
        if self._resume_mark is not None:
            row["resumed_from"] = self._resume_mark
            self._resume_mark = None
        self._metrics.append(row)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of metrics.jsonl, the oldest first."""
        return self._metrics.rows()

    def append_sample(self, step: int, prompt: str, answer: str) -> None:
        """Add an answer of the model to samples.jsonl."""
        self.marks.add()
        self._samples.append({"step": step, "prompt": prompt, "answer": answer})

    def has_sample(self, step: int) -> bool:
        """Return True if samples.jsonl has an answer of this step."""
        return any(row["step"] == step for row in self._samples.rows())

    def has_metric(self, step: int, name: str) -> bool:
        """Return True if metrics.jsonl has a value of this name at this step."""
        return any(row["step"] == step and name in row for row in self._metrics.rows())

    def seconds(self) -> float:
        """Return the training time in seconds over all attempts (monotonic clock)."""
        return self._seconds_before + time.monotonic() - self._started_at

    def truncate(self) -> None:
        """Start from step 0: drop metrics and samples of an attempt without a checkpoint, but its
        first samples."""
        self._truncate_after(0, last_sample_step=0)

    def truncate_after(self, step: int, *, has_all_steps: bool) -> int:
        """Drop metrics and samples after the checkpoint of `step` and restore the elapsed time.

        `has_all_steps` means that only the result is missing; the samples at the end are then
        answered again. Returns the number of tokens that were trained on up to `step`.
        """
        rows = self._truncate_after(step, last_sample_step=step - 1 if has_all_steps else step)
        self._resume_mark = step
        earlier_marks = [int(row["resumed_from"]) for row in rows if "resumed_from" in row]
        self.update(resumed_at=(*earlier_marks, step))
        return max((int(row.get("num_tokens", 0)) for row in rows), default=0)

    def sync(self) -> None:
        """Wait until all metrics and samples would survive a power cut."""
        self._metrics.sync()
        self._samples.sync()

    def close(self) -> None:
        """Delete the spare file; the run is over."""
        with suppress(OSError):
            self._spare_file.unlink()

    def _truncate_after(self, step: int, *, last_sample_step: int) -> list[dict[str, Any]]:
        self._samples.truncate_after(last_sample_step)
        rows = self._metrics.truncate_after(step)
        self._seconds_before = max((float(row["time"]) for row in rows), default=0.0)
        return rows

    def _write_status(self) -> None:
        self._written_at = time.monotonic()
        self.status = replace(self.status, updated=time.time(), seconds=round(self.seconds(), 3))
        write_json(self.folder / "status.json", self.status.to_json())

    def _write_status_without_spare_file(self) -> None:
        with suppress(OSError):
            self._spare_file.unlink()
            self._write_status()
            self._write_spare_file()

    def _write_spare_file(self) -> None:
        # Random bytes, because some file systems compress. On a full disk a shorter file has to do.
        with suppress(OSError):
            self._spare_file.write_bytes(os.urandom(SPARE_BYTES))


def say(sentence: str, to: TextIO | None = None) -> None:
    """Print to the log. A log that cannot be written to does not end the run."""
    with suppress(OSError):
        print(sentence, file=to, flush=True)
