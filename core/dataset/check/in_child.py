"""Check in a child process, whose memory and time no file can exceed."""

from pathlib import Path

from core.dataset.report import DatasetReport, file_problem
from core.device.child import Child, Limits
from core.job import ChildError

MEMORY_BYTES = 2 * 2**30
SECONDS = 1800.0
FIX = "look for very long or very deep rows, or split the file"


def check_in_child(
    path: Path,
    stage: str = "sft",
    *,
    eval_path: Path | None = None,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> DatasetReport:
    """Check a file as `check_file` does, with no risk for this process. Raises nothing.

    A child that died or took too long, or a file that cannot be read, leaves a report with one
    problem that says so (codes `check_died`, `check_too_long`, `unreadable`).
    """
    request = {"do": "check", "path": str(path), "stage": stage}
    if eval_path:
        request["eval_path"] = str(eval_path)
    limits = Limits(memory_bytes, cpu_seconds=int(seconds) + 1, file_bytes=0)
    try:
        with Child("core.workers.dataset", limits) as child:
            return DatasetReport.from_json(child.ask(request, seconds))
    except ChildError as error:
        code = "check_too_long" if error.cause == "too_long" else "check_died"
        problem = f"the file was not checked: {error.reason}"
        return DatasetReport.refused(file_problem(code, problem, FIX))
