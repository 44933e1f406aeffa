"""Make one export: `python -m core.workers.export FOLDER`, with FOLDER/request.json.

The folder of the export takes its place only when everything is written and verified. Exit codes:
0 finished, 1 failed, 130 stopped.
"""

import errno
import json
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from core.after_training.export import ExportStatus
from core.after_training.export.records import (
    CHECKS,
    PROCESS,
    UNFINISHED,
    ExportRequest,
    Manifest,
)
from core.device import card_of
from core.job import SpecError
from core.runs import Home, queue, read
from core.training.contract.failures import Stopped, TrainingError
from core.training.contract.job import Job
from core.training.contract.weights.files import UnusableWeights
from core.workers.export.task import ExportTask
from core.workers.quick_imports import quick_imports

FINISHED, FAILED, STOPPED = 0, 1, 130
SEE_LOG = "see its log"
DROPPED = (
    "Its files differ from those of the export before, so the results of its checks were dropped: "
    "check it again."
)


def main(folder: Path) -> int:
    """Make the export that a folder asks for, and return the exit code."""
    token = sys.stdin.read().strip()
    warnings.filterwarnings("ignore")
    task = ExportTask(folder, ExportRequest.read(folder))
    with task.signals():
        try:
            _export(task, token)
        except Stopped:
            task.end(ExportStatus("stopped"))
            return STOPPED
        except Exception as error:
            reason, fix = _reason(error, task)
            print(_without(token, traceback.format_exc()), file=sys.stderr)
            task.end(ExportStatus("failed", task.phase, error=_without(token, reason), fix=fix))
            return FAILED
    return FINISHED


def _export(task: ExportTask, token: str) -> None:
    _reserve_card(task)
    with quick_imports():
        from core.workers.export.forms import MAKERS

    started = time.monotonic()
    task.files.mkdir(exist_ok=True)
    shutil.rmtree(task.files / CHECKS, ignore_errors=True)  # of an attempt that was killed
    run_folder = Path(task.request.run_folder)
    job = Job.from_json(json.loads((run_folder / "job.json").read_text(encoding="utf-8")))
    manifest = MAKERS[task.request.form](task, job, token)
    task.enter("Finishing")
    place = task.folder.with_name(task.folder.name.removeprefix(UNFINISHED))
    manifest = keep_checks(place, task.files, manifest)
    manifest.with_seconds(time.monotonic() - started).write(task.files)
    older = task.folder / "older"
    if place.exists():
        place.rename(older)
    task.files.rename(place)
    (task.folder / PROCESS).unlink(missing_ok=True)  # the others follow in any order
    shutil.rmtree(task.folder, ignore_errors=True)


def keep_checks(earlier: Path, files: Path, manifest: Manifest) -> Manifest:
    """Copy what an earlier export of this name has answered to suites if the files are the same;
    else say in the manifest that it is dropped. Raises OSError."""
    if not (earlier / CHECKS).is_dir():
        return manifest
    try:
        is_same = Manifest.read(earlier).answers_from == manifest.answers_from
    except ValueError:
        is_same = False
    if is_same:
        shutil.copytree(earlier / CHECKS, files / CHECKS)
        return manifest
    return replace(manifest, notes=(*manifest.notes, DROPPED))


def _reserve_card(task: ExportTask) -> None:
    """Hold the card of the run if there is one and it is free; else leave it alone.

    Must run before torch is imported. The reservation ends with this process.
    """
    run_folder = Path(task.request.run_folder)
    run = read(Home(run_folder.parent.parent), run_folder.name)
    if card_of(0) is None:
        return
    try:
        queue.reserve(run.home, run.job.device, "export", f"the export of {run.name}")
    except SpecError as error:
        print(f"{error.reason}: the export is verified on the processor")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _reason(error: Exception, task: ExportTask) -> tuple[str, str]:
    """Return (what went wrong, what to do) as a user reads it."""
    if isinstance(error, UnusableWeights):
        return _sentence(error.problem), error.fix
    if isinstance(error, TrainingError):
        return str(error), SEE_LOG
    if isinstance(error, MemoryError):
        return "The memory of this machine is not enough.", "close other programs and try again"
    if isinstance(error, OSError) and (error.errno or 0) in OS_ERRORS:
        return OS_ERRORS[error.errno or 0](error)
    return f"{type(error).__name__}: {error}".splitlines()[0][:300], SEE_LOG


def _disk_is_full(_error: OSError) -> tuple[str, str]:
    return "The disk is full.", "free some space and export again: finished files are kept"


def _is_read_only(error: OSError) -> tuple[str, str]:
    return f"{error.filename} cannot be written to.", "change its permissions"


def _is_missing(error: OSError) -> tuple[str, str]:
    return f"{error.filename} is not there any more.", "put it back and export again"


OS_ERRORS: Mapping[int, Callable[[OSError], tuple[str, str]]] = {
    errno.ENOSPC: _disk_is_full,
    errno.EDQUOT: _disk_is_full,
    errno.EROFS: _is_read_only,
    errno.EACCES: _is_read_only,
    errno.EPERM: _is_read_only,
    errno.ENOENT: _is_missing,
}


def _sentence(text: str) -> str:
    if not text.split(" ")[0].isalpha():  # the name of a file
        return f"{text}."
    return f"{text[:1].upper()}{text[1:]}."


def _without(token: str, text: str) -> str:
    if token:
        return text.replace(token, "...")
    return text


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
