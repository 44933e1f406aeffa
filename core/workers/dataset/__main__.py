"""The child of `check_in_child` and `take_in`: reads one request, says how far it is, and at last what came of it."""

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.dataset.check.check import examine
from core.dataset.check.scanner import Wish
from core.dataset.intake.convert import Sources, write_json_lines
from core.dataset.report import DatasetReport, file_problem
from core.job import DatasetError, Problem

SECONDS_BETWEEN_REPORTS = 0.2
OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Rows hold no cycles: looking for some every 700 objects takes a fifth of the time of a check."""


def main() -> None:
    """One request on standard input, one outcome on standard output."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    request = json.loads(sys.stdin.readline())
    _limit(request["memory_bytes"], request["cpu_seconds"], request["max_bytes"])
    _say(_check(request) if request["do"] == "check" else _write(request))


class Progress:
    """Says how many bytes have been read, now and then."""

    def __init__(self, total_bytes: int):
        self.total_bytes = total_bytes
        self.said_at = 0.0

    def __call__(self, num_bytes: int) -> None:
        now = time.monotonic()
        if now - self.said_at > SECONDS_BETWEEN_REPORTS:
            self.said_at = now
            _say({"num_bytes": num_bytes, "total_bytes": self.total_bytes})


def _check(request: Mapping[str, Any]) -> dict[str, Any]:
    path, eval_path = Path(request["path"]), request["eval_path"]
    wish = Wish(
        request["stage"],
        request["kind"],
        request["columns"],
        Path(eval_path) if eval_path else None,
    )
    try:
        report = examine(path, wish, Progress(path.stat().st_size)).report
    except OSError as error:
        problem = file_problem(
            "unreadable", f"cannot be read: {error.strerror}", "give a file that can be read"
        )
        report = DatasetReport.refused(problem)
    except MemoryError:
        fix = "split its longest rows"
        report = DatasetReport.refused(
            file_problem("check_died", "its rows take too much memory", fix)
        )
    return {"report": report.to_json()}


def _write(request: Mapping[str, Any]) -> dict[str, Any]:
    paths = [Path(path) for path in request["sources"]["paths"]]
    sources = Sources(**{**request["sources"], "paths": paths})
    on_bytes = Progress(sum(path.stat().st_size for path in paths))
    try:
        rows, actions = write_json_lines(sources, Path(request["target"]), on_bytes)
    except DatasetError as error:
        return {"problem": asdict(error.problems[0])}
    except OSError as error:
        return {
            "problem": asdict(
                Problem("disk", f"{error.strerror}", "make room, or give a smaller source")
            )
        }
    except MemoryError:
        return {
            "problem": asdict(
                file_problem("died", "its rows take too much memory", "split its longest rows")
            )
        }
    return {"done": {"rows": rows, "actions": actions}}


def _limit(memory_bytes: int, cpu_seconds: int, max_bytes: int) -> None:
    """Takes from this process what a hostile file could make it use. Windows has no such limits."""
    if os.name == "posix":
        import resource
        import signal

        signal.signal(
            signal.SIGXFSZ, signal.SIG_IGN
        )  # a file that grows too large is an error, not the end
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
