"""Which processes are still the ones we started: a pid alone does not say. Asks psutil and /proc; signals nobody."""

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
    """The identity of a living process; None if there is none with this pid."""
    times = _start_times(pid)
    return ProcessId(pid, times[0][0], this_boot()) if times else None


def is_alive(process: ProcessId) -> bool:
    """True if this very process still runs. A zombie does not; nor does what took its pid, or came after a restart."""
    if not is_same_boot(process.boot_id, this_boot()):
        return False
    return any(
        abs(start - process.start_time) <= tolerance
        for start, tolerance in _start_times(process.pid)
    )


def _start_times(pid: int) -> tuple[tuple[float, float], ...]:
    """When a process started, on each clock, the best first, with the seconds that the clock may be off; () if dead.

    Both, so that a process may tell of itself what psutil's create_time says.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ()
        since_1970 = (
            process.create_time(),
            1.5,
        )  # the boot time in it is a whole second that may flip
        return (*_since_boot(pid), since_1970)
    except (psutil.Error, OSError, ValueError, OverflowError):
        return ()


def _since_boot(pid: int) -> tuple[tuple[float, float], ...]:
    """Field 22 of /proc/PID/stat, see proc_pid_stat(5); the name before it may hold spaces and brackets."""
    if platform.system() != "Linux":
        return ()
    fields = (
        Path(f"/proc/{pid}/stat")
        .read_text(encoding="utf-8", errors="replace")
        .rpartition(")")[2]
        .split()
    )
    return ((int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.005),)
