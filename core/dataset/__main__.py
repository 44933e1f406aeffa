"""The child's side of `check_in_child`: reads one request, says how far it is, and at last the report."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from core.dataset.check import examine
from core.dataset.report import DatasetReport, file_problem
from core.dataset.walk import Wish

SECONDS_BETWEEN_REPORTS = 0.2


def main() -> None:
    """One check, from a request on standard input to a report on standard output."""
    request = json.loads(sys.stdin.readline())
    _limit(request["memory_bytes"], request["cpu_seconds"])
    path, eval_path = Path(request["path"]), request["eval_path"]
    wish = Wish(request["stage"], request["kind"], request["columns"], Path(eval_path) if eval_path else None)
    try:
        report = examine(path, wish, Progress(path)).report
    except OSError as error:
        problem = file_problem("unreadable", f"cannot be read: {error.strerror}", "give a file that can be read")
        report = DatasetReport.refused(problem)
    except MemoryError:
        fix = "split its longest rows"
        report = DatasetReport.refused(file_problem("check_died", "its rows take too much memory", fix))
    _say({"report": report.to_json()})


class Progress:
    """Says how many bytes have been read, now and then."""

    def __init__(self, path: Path):
        self.total_bytes = path.stat().st_size
        self.said_at = 0.0

    def __call__(self, num_bytes: int) -> None:
        now = time.monotonic()
        if now - self.said_at > SECONDS_BETWEEN_REPORTS:
            self.said_at = now
            _say({"num_bytes": num_bytes, "total_bytes": self.total_bytes})


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Takes from this process what a hostile file could make it use. Windows has no such limits."""
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
