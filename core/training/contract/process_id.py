"""Identity of a process, as process.json, exit.json and status.json hold it. Asks nothing about
live processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
BOOT_TIME_TOLERANCE_SECONDS = 100
"""Windows recomputes its boot time at every call, up to some seconds apart; two boots are further
apart than this."""
MAX_SECONDS = 1e12
"""Larger start times are damage, and too large for a float."""


@dataclass(frozen=True)
class ProcessId:
    """Process, told apart from all others that had or will have its pid."""

    pid: int
    start_time: float
    """Linux: seconds since boot, which setting the clock does not change. Elsewhere: Unix seconds.
    """
    boot_id: str

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "ProcessId | None":
        """Return the process that a file names; None if it names none, or the system's 0 or 1."""
        pid = fields.get("pid")
        start_time = fields.get("pid_start_time")
        boot_id = fields.get("boot_id")
        if not isinstance(pid, int) or pid <= 1 or not isinstance(boot_id, str):
            return None
        if not isinstance(start_time, int | float) or abs(start_time) > MAX_SECONDS:
            return None
        return cls(pid, float(start_time), boot_id)

    def to_json(self) -> dict[str, object]:
        """Return the fields as the files name them."""
        return {
            "pid": self.pid,
            "pid_start_time": self.start_time,
            "boot_id": self.boot_id,
        }


def read_boot_id(boot_time: Callable[[], float], file: Path = BOOT_ID_FILE) -> str:
    """Return a name for the time since this machine was started.

    Linux has one in `file`. Elsewhere it is the boot time in Unix seconds, which `boot_time`
    returns (psutil.boot_time).
    """
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return str(boot_time())


def is_same_boot(one: str, other: str) -> bool:
    """Return True if two boot ids name the same boot. Boot times may differ by some seconds."""
    if one == other:
        return True
    try:
        return abs(float(one) - float(other)) <= BOOT_TIME_TOLERANCE_SECONDS
    except ValueError:
        return False
