"""Infer the state of a run from its files, and what a silent end means. Changes nothing."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from core.device import is_alive, this_boot
from core.runs.files import log_tail, number_in, read_json
from core.training.contract.process_id import ProcessId, is_same_boot
from core.training.contract.states import ENDED, State
from core.training.contract.status import Status

SECONDS_TO_APPEAR = 20
"""A run that nobody has begun after this long was forgotten: its starter died."""


STATUS: Mapping[str, type] = MappingProxyType(
    dict.fromkeys(("step", "max_steps", "started", "updated", "seconds"), float)
    | dict.fromkeys(("last_step_time", "seconds_per_step"), float)
    | dict.fromkeys(
        ("baseline_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "device_capacity_bytes"),
        float,
    )
    | dict.fromkeys(("state", "phase", "error", "cause", "device", "warning"), str)
    | dict.fromkeys(("phase_peak_bytes", "progress"), dict)
    | dict.fromkeys(("notes", "skipped_checkpoints"), list)
)
"""Field of status.json -> what it holds; float stands for any number."""


@dataclass(frozen=True)
class Verdict:
    """The state of a run, and what went wrong: a sentence for people, a word for the remedies."""

    state: State
    error: str = ""
    cause: str = ""
    process: ProcessId | None = None
    """Who executes it; None if nobody does."""


@dataclass(frozen=True)
class Ending:
    """What it means when a program ends by a signal."""

    sentence: str
    cause: str = "signal"


OUT_OF_MEMORY = Ending("was ended by the kernel, because main memory was full", "out_of_memory")
ENDINGS: Mapping[str, Ending] = MappingProxyType(
    {
        "SIGKILL": Ending("was killed (SIGKILL), by somebody or because main memory was full"),
        "SIGTERM": Ending("was told by another program to end (SIGTERM)"),
        "SIGINT": Ending("was interrupted (SIGINT)"),
        "SIGHUP": Ending("lost its terminal (SIGHUP)"),
        "SIGSEGV": Ending("crashed inside a library (SIGSEGV)"),
        "SIGBUS": Ending(
            "could not reach a file's memory (SIGBUS), as when the disk or /dev/shm is full",
            "disk_full",
        ),
        "SIGILL": Ending("met an instruction that this processor does not have (SIGILL)"),
        "SIGABRT": Ending("was given up by a library (SIGABRT)"),
        "SIGFPE": Ending("was ended by an arithmetic error in a library (SIGFPE)"),
    }
)
"""Name of the signal -> what it says of a program that nobody here has stopped."""


def judge(folder: Path, status: Status, created: float) -> Verdict:
    """The state of a run that does not wait: as its program says, unless that is dead and did not say how it ended."""
    said = status.state
    if said in ENDED:
        return Verdict(said, status.error or "", status.cause or "")
    launched = read_json(folder / "process.json")
    is_asked_to_stop = (folder / "stop").exists()
    # A launch deletes status.json. So if both files name a process, status.json is of the same one, or of a later
    # one that was started by hand in the run's folder.
    started, said_by = ProcessId.from_json(launched), status.process
    for process in (started, said_by):
        if process and is_alive(process):
            return Verdict("stopping" if is_asked_to_stop else said, process=process)
    is_by_hand = started and said_by and started.pid != said_by.pid
    process = said_by if is_by_hand else started or said_by
    since_begun = abs(
        time.time() - max(created, number_in(launched, "asked") or 0)
    )  # abs: clocks are set back too
    if process is None and since_begun < SECONDS_TO_APPEAR:
        return Verdict("starting")
    if is_asked_to_stop:
        return Verdict("stopped")  # ended as asked, before it could say so
    return _silent_end(folder, process, status.step)


def num_oom_kills() -> int | None:
    """How many programs the kernel has ended for want of memory since the start of the machine (Linux 4.13 on)."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii").split()
        return int(counters[counters.index("oom_kill") + 1])
    except (OSError, ValueError):
        return None


def _silent_end(folder: Path, process: ProcessId | None, step: int) -> Verdict:
    """What happened to a program that ended without a word. Its starter, if it still lived, saw the exit code."""
    if process is None:
        return Verdict("failed", "The training program was never started.")
    if not is_same_boot(process.boot_id, this_boot()):
        return Verdict("interrupted", "The computer was restarted while this run was training.")
    seen = read_json(folder / "exit.json")
    code = seen.get("code") if ProcessId.from_json(seen) == process else None
    where = f"after step {step:,}" if step else "before its first step"
    if isinstance(code, int) and code < 0:
        ending = OUT_OF_MEMORY if seen.get("is_out_of_memory") else _ending(-code)
        return Verdict("failed", f"The training program {ending.sentence}, {where}.", ending.cause)
    last_words = log_tail(folder, 2000).rsplit("\n", 1)[-1]
    how = f"with exit code {code}" if code is not None else "without finishing"
    return Verdict(
        "failed",
        f"The training program ended {how}, {where}. Its last words: {last_words or 'none'}",
    )


def _ending(number: int) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return ENDINGS.get(name, Ending(f"was ended by {name}"))
