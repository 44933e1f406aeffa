"""Check dataset files, convert and rewrite them: the child of `check_in_child`, `import_dataset`
and core/dataset/rewrite/in_child.py.

Run `python -m core.workers.dataset`, which core/workers/child.py serves.
"""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.dataset import DatasetReport, check_file
from core.dataset.intake import Sources, write_json_lines
from core.dataset.report import file_problem
from core.dataset.rewrite import in_child
from core.job import DatasetError, Problem
from core.workers.child import Reporter, serve

OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Rows hold no cycles: looking for some every 700 objects takes a fifth of the time of a check."""


def main() -> None:
    """Answer requests on standard input."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    serve(answer, explain)


def answer(request: Mapping[str, Any], report: Reporter) -> object:
    """Return the report on a file as JSON, or what was written."""
    if request["do"] == "check":
        return _check(request).to_json()
    if request["do"] != "convert":
        return in_child.answer(request)
    paths = [Path(path) for path in request["paths"]]
    total_bytes = max(1, sum(path.stat().st_size for path in paths))
    rows = write_json_lines(
        Sources(paths, request["form"], request["delimiter"]),
        Path(request["target"]),
        lambda num_bytes: report(num_bytes / total_bytes),
    )
    return {"rows": rows}


def _check(request: Mapping[str, Any]) -> DatasetReport:
    eval_path = Path(request["eval_path"]) if "eval_path" in request else None
    path, stage = Path(request["path"]), request["stage"]
    try:
        return check_file(path, stage, eval_path=eval_path)
    except DatasetError:
        return check_file(path, stage)  # the check of the other file by itself says what is wrong
    except OSError as error:
        problem, fix = f"cannot be read: {error.strerror}", "give a file that can be read"
        return DatasetReport.refused(file_problem("unreadable", problem, fix))


def explain(error: Exception, _request: Mapping[str, Any]) -> Problem:
    """Return what is wrong with a file that cannot be read or converted."""
    if isinstance(error, DatasetError):
        return error.problems[0]
    if isinstance(error, MemoryError):
        return Problem("file", "its rows take too much memory", "split its longest rows")
    if isinstance(error, OSError):
        return Problem("file", error.strerror or str(error), "check the file and the disk")
    return Problem("file", f"{type(error).__name__}: {error}", "check the file")


if __name__ == "__main__":
    main()
