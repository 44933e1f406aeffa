"""Identity of processes, which a pid alone does not give. Reads only; never sends signals."""

import os
import platform
from functools import cache
from pathlib import Path

import psutil

from core.training.contract.process_id import ProcessId, is_same_boot, read_boot_id


@cache
def this_boot() -> str:
    """Return a name for the time since this machine was started."""
    return read_boot_id(psutil.boot_time)


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a living process, or None if there is none with this pid."""
    if times := _start_times(pid):
        return ProcessId(pid, times[0][0], this_boot())
    return None


def is_alive(process: ProcessId) -> bool:
    """Return True if this very process still runs.

    It does not if it is a zombie, if another process has its pid, or after a restart.
    """
    if not is_same_boot(process.boot_id, this_boot()):
        return False
    return any(
        abs(start - process.start_time) <= tolerance
        for start, tolerance in _start_times(process.pid)
    )


def _start_times(pid: int) -> tuple[tuple[float, float], ...]:
    """Return (start time, tolerance) in seconds on each clock, the best first; () if it is dead.

    One clock counts from boot, the other is psutil's create_time, by which a process may identify
    itself.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ()
        # the boot time in create_time is a whole second that may change by one
        since_1970 = (process.create_time(), 1.5)
        if platform.system() != "Linux":
            return (since_1970,)
        return _since_boot(pid), since_1970
    except (psutil.Error, OSError, ValueError, OverflowError):
        return ()


def _since_boot(pid: int) -> tuple[float, float]:
    """Read field 22 of /proc/PID/stat, see proc_pid_stat(5)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text.rpartition(")")[2].split()  # the name in front may contain spaces and brackets
    return int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.005
