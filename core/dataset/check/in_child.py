"""The check in a child process, with limits on memory and time that no upload can break."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.dataset.report import DatasetReport, file_problem
from core.device.child import Child
from core.job import ChildDied

MEMORY_BYTES = 2 * 2**30
TIME_LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Progress:
    """How far a file is."""

    num_bytes: int
    total_bytes: int
    doing: str = "checking"
    """Or downloading, or converting."""

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.num_bytes / self.total_bytes) if self.total_bytes else 1.0


def _silent(_progress: Progress) -> None:
    """Tells nobody."""


def check_in_child(
    path: Path,
    stage: str = "sft",
    *,
    kind: str = "",
    columns: Mapping[str, str] | None = None,
    eval_path: Path | None = None,
    on_progress: Callable[[Progress], None] = _silent,
    is_cancelled: Callable[[], bool] = lambda: False,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> DatasetReport:
    """`check`, without a risk for this process. Raises nothing for whatever is in the file.

    A child that died, took too long, was called off or could not read the file leaves a report with one problem that
    says so: codes `check_died`, `check_too_long`, `check_cancelled`, `unreadable`.
    """
    request = {
        "do": "check",
        "path": str(path),
        "stage": stage,
        "kind": kind,
        "columns": dict(columns or {}),
        "eval_path": str(eval_path) if eval_path else "",
        "memory_bytes": memory_bytes,
        "max_bytes": 0,
        "cpu_seconds": int(time_limit_seconds) + 1,
    }
    deadline = time.monotonic() + time_limit_seconds
    try:
        with Child("core.workers.dataset") as child:
            child.send(request)
            while (left := deadline - time.monotonic()) > 0 and (
                message := child.receive(left, is_cancelled)
            ):
                if "report" in message:
                    return DatasetReport.from_json(message["report"])
                on_progress(Progress(**message))
    except ChildDied as error:
        fix = "look for very long or very deep rows, or split the file"
        return DatasetReport.refused(
            file_problem("check_died", f"the check did not survive: {error.reason}", fix)
        )
    if is_cancelled():
        return DatasetReport.refused(
            file_problem("check_cancelled", "the check was called off", "start it again")
        )
    message_text = f"the check took longer than {time_limit_seconds:g} seconds"
    return DatasetReport.refused(file_problem("check_too_long", message_text, "split the file"))
