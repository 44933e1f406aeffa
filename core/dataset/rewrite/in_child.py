"""Rewriting of files in a child process, whose memory and time no file can exceed.

Small files are rewritten in this process, which is sooner done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.dataset.check import find_leak
from core.dataset.files import Written
from core.dataset.rewrite import mix
from core.dataset.rewrite.columns import map_columns
from core.dataset.rewrite.repair import as_lines as write_as_lines
from core.dataset.rewrite.repair import drop_bad_rows, keep_wanted, repair, split_text
from core.device.child import Child, Limits
from core.job import ChildError, DatasetError, Problem

SMALL_BYTES = 4 * 2**20
MEMORY_BYTES = 4 * 2**30
SECONDS = 3600.0
FIX = "look for very long rows, or give it in parts"


def _as_lines(path: Path, target: Path) -> Written:
    return Written(write_as_lines(path, target), 0, ())


REWRITES: Mapping[str, Callable[..., Written]] = MappingProxyType(
    {
        "as_lines": _as_lines,
        "drop_bad_rows": drop_bad_rows,
        "keep_wanted": keep_wanted,
        "map_columns": map_columns,
        "repair": repair,
        "split_text": split_text,
    }
)
"""Name -> function that writes a file again, given the file and the path of the new one."""


def rewrite(how: str, path: Path, target: Path, **details: Any) -> Written:
    """Write a file again in one of the ways of REWRITES. Raises DatasetError, OSError."""
    if path.stat().st_size <= SMALL_BYTES:
        return REWRITES[how](path, target, **details)
    request = {"how": how, "path": str(path), "target": str(target), "details": details}
    found = _ask({"do": "rewrite", **request})
    return Written(Path(found["path"]), found["rows"], tuple(found["actions"]))


def as_lines(path: Path, target: Path) -> Path:
    """Return a file with one row a line, as `as_lines` of this package does."""
    return rewrite("as_lines", path, target).path


def compose(
    sources: Sequence[tuple[Path, float]],
    target: Path,
    selection: mix.Selection | None = None,
    eval_target: Path | None = None,
) -> mix.Composed:
    """Write the rows of files into one, as `compose` of this package does.

    Raises DatasetError, OSError.
    """
    selection = selection or mix.Selection()
    if sum(path.stat().st_size for path, _weight in sources) <= SMALL_BYTES:
        return mix.compose(sources, target, selection, eval_target)
    request = {
        "do": "compose",
        "sources": [(str(path), weight) for path, weight in sources],
        "target": str(target),
        "selection": asdict(selection),
        "eval_target": str(eval_target) if eval_target else "",
    }
    found = _ask(request)
    return mix.Composed(tuple(found["rows"]), found["eval_rows"])


def require_one_format(paths: Sequence[Path], stage: str) -> None:
    """Raise DatasetError if the files' first rows cannot be trained on together. Raises OSError."""
    if sum(path.stat().st_size for path in paths) <= SMALL_BYTES:
        mix.require_one_format(paths, stage)
        return
    _ask({"do": "require_one_format", "paths": [str(path) for path in paths], "stage": stage})


def count_leaked(train: Path, held_out: Path, stage: str) -> tuple[int, int]:
    """Return how many rows of a second file are in a first one, and how many it has.

    Raises DatasetError, OSError.
    """
    if train.stat().st_size + held_out.stat().st_size <= SMALL_BYTES:
        leak = find_leak(train, held_out, stage)
        return len(leak.lines), leak.num_eval_rows
    request = {"do": "count_leaked", "train": str(train), "held_out": str(held_out), "stage": stage}
    num_leaked, num_rows = _ask(request)
    return num_leaked, num_rows


def answer(request: Mapping[str, Any]) -> object:
    """Do in the child what a request of this module asks. Raises DatasetError, OSError."""
    if request["do"] == "compose":
        sources = [(Path(path), weight) for path, weight in request["sources"]]
        eval_target = Path(request["eval_target"]) if request["eval_target"] else None
        selection = mix.Selection(**request["selection"])
        return asdict(mix.compose(sources, Path(request["target"]), selection, eval_target))
    if request["do"] == "require_one_format":
        mix.require_one_format([Path(path) for path in request["paths"]], request["stage"])
        return None
    if request["do"] == "count_leaked":
        leak = find_leak(Path(request["train"]), Path(request["held_out"]), request["stage"])
        return len(leak.lines), leak.num_eval_rows
    path, target = Path(request["path"]), Path(request["target"])
    written = REWRITES[request["how"]](path, target, **request["details"])
    return {"path": str(written.path), "rows": written.rows, "actions": written.actions}


def _ask(request: Mapping[str, Any]) -> Any:
    limits = Limits(MEMORY_BYTES, cpu_seconds=int(SECONDS) + 1)
    try:
        with Child("core.workers.dataset", limits) as child:
            return child.ask(request, SECONDS)
    except ChildError as error:
        if error.cause == "refused":
            raise DatasetError(*error.problems) from None
        raise DatasetError(
            Problem("file", f"its rows were not written: {error.reason}", FIX)
        ) from None
