"""The run folder as the program sees it: status.json, metrics.jsonl and samples.jsonl, and the request to stop.

Knows nothing of models or of torch.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from .failure import Stopped

State = Literal["starting", "running", "stopping", "finished", "stopped", "failed"]
Phase = Literal["import", "data", "load", "train", "eval", "save"]
SECONDS_BETWEEN_UPDATES = 0.5


@dataclass(frozen=True)
class Status:
    """What status.json says. Sizes in bytes, moments in Unix seconds."""

    pid: int
    pid_start_time: float
    boot_id: str
    started: float
    """When this process started; a resumed run starts again."""
    updated: float
    state: State = "starting"
    phase: Phase = "import"
    """What is being done, or was being done at the end."""
    error: str | None = None
    """One sentence, for a failed run."""
    result: str | None = None
    """The folder of the result, for a finished run."""
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    num_train_epochs: float = 0.0
    num_train_rows: int | None = None
    num_eval_rows: int | None = None
    num_parameters: int | None = None
    num_trainable_parameters: int | None = None
    device: str | None = None
    device_capacity_bytes: int | None = None
    baseline_bytes: int | None = None
    """What the process held before the model was loaded; 0 on a GPU."""
    phase_peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """Peak of each phase above the baseline: load, forward, backward, optimizer_step, eval, save."""
    peak_allocated_bytes: int | None = None
    """Highest allocated memory of the whole training (a GPU only)."""
    peak_reserved_bytes: int | None = None
    """Highest reserved memory of the whole training (a GPU only)."""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, to continue from."""

    folder: Path
    step: int
    max_steps: int


class Record:
    """The one place that reads and writes the run folder while training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.status = Status(
            pid=os.getpid(),
            pid_start_time=psutil.Process().create_time(),
            boot_id=_boot_id(),
            started=time.time(),
            updated=time.time(),
        )
        self.may_stop_anywhere = True
        """True while there is nothing to save, so that a signal may end whatever is being done."""
        self.activity: str | None = None
        """Within a step: forward, backward or optimizer_step; for the words of a failure."""
        self._signalled = False
        self._written = -math.inf
        self._began = time.monotonic()
        self._seconds_before = 0.0
        self._write_status()

    def enter(self, phase: Phase) -> None:
        """Says what is done next. Raises Stopped if an end was asked for while there is nothing to save."""
        self.update(phase=phase)
        if self.may_stop_anywhere and self.is_stop_requested():
            raise Stopped

    def update(self, **changes: Any) -> None:
        """Changes fields of the status; at once on disk if state or phase change, else at most twice a second."""
        before = self.status
        self.status = replace(before, **changes)
        is_news = (before.state, before.phase) != (self.status.state, self.status.phase)
        if is_news or time.monotonic() - self._written >= SECONDS_BETWEEN_UPDATES:
            self._write_status()

    def append_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Adds a line to metrics.jsonl. Numbers that JSON does not have are left out and named in `nonfinite`."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row: dict[str, object] = {"step": step, "epoch": round(epoch, 6), "time": round(self.seconds(), 3), **finite}
        if nonfinite := [name for name in values if name not in finite]:
            row["nonfinite"] = nonfinite
        self._append("metrics.jsonl", row)

    def append_sample(self, step: int, prompt: str, answer: str) -> None:
        """Adds an answer of the model to samples.jsonl."""
        self._append("samples.jsonl", {"step": step, "prompt": prompt, "answer": answer})

    def seconds(self) -> float:
        """Seconds that the run has trained, in this life and in those before it."""
        return self._seconds_before + time.monotonic() - self._began

    def rewind(self, step: int) -> int:
        """Forgets what an earlier life wrote after `step`, takes over its clock, and returns its number of tokens."""
        self._keep("samples.jsonl", step)
        kept = self._keep("metrics.jsonl", step)
        self._seconds_before = max((float(row["time"]) for row in kept), default=0.0)
        return max((int(row.get("num_tokens", 0)) for row in kept), default=0)

    def newest_checkpoint(self) -> Checkpoint | None:
        """The complete checkpoint of the highest step. Its trainer_state.json, written last, says it is complete."""
        found = []
        for path in self.folder.glob("checkpoints/checkpoint-*/trainer_state.json"):
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue  # torn by a crash
            found.append(Checkpoint(path.parent, int(state["global_step"]), int(state["max_steps"])))
        return max(found, key=lambda checkpoint: checkpoint.step, default=None)

    def has_sample(self, step: int) -> bool:
        """True if samples.jsonl holds an answer of that step."""
        return any(row["step"] == step for row in _rows(self.folder / "samples.jsonl"))

    def is_stop_requested(self) -> bool:
        """True once a signal came or the file `stop` is there."""
        return self._signalled or (self.folder / "stop").exists()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for an end while this lasts. Only a main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first, self._signalled = not self._signalled, True
        if is_first and self.may_stop_anywhere:
            raise Stopped

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")

    def _keep(self, name: str, step: int) -> list[dict[str, Any]]:
        path = self.folder / name
        kept = [row for row in _rows(path) if row["step"] <= step]
        if path.exists():
            _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        return kept

    def _write_status(self) -> None:
        self.status = replace(self.status, updated=time.time())
        _replace(self.folder / "status.json", json.dumps(asdict(self.status), indent=2) + "\n")
        self._written = time.monotonic()


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a line torn by a crash is left out."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _replace(path: Path, text: str) -> None:
    """Puts a new file in the place of the old one: a reader sees the one or the other, also after a power cut."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for _ in range(20 if sys.platform == "win32" else 0):
        try:
            beside.replace(path)
            return
        except PermissionError:
            time.sleep(0.02)  # Windows refuses while a reader has the file open
    beside.replace(path)


def _boot_id() -> str:
    """Changes when the machine restarts, so that a process number is not taken for another process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(psutil.boot_time())
