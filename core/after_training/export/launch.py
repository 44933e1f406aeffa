"""Start, follow and stop the worker that makes an export. It outlives the page and the terminal."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from core.after_training.export.plan import ExportPlan
from core.after_training.export.records import (
    LOG,
    PROCESS,
    REQUEST,
    STATUS,
    STOP,
    UNFINISHED,
    Export,
    ExportRequest,
    ExportStatus,
    exports_folder,
    list_exports,
    unfinished_folder,
)
from core.after_training.export.tools import ROOT
from core.device import identify, is_alive
from core.job import Problem, SpecError
from core.runs import Run, launch
from core.training.contract.files import write_json
from core.training.contract.process_id import ProcessId

WORKER = "core.workers.export"
SECONDS_TO_LOCK = 5
SECONDS_TO_STOP = 10
"""Time for a worker to end after a request to stop, before it is killed."""
SECONDS_BETWEEN_LOOKS = 0.2
ACTIVE = ("starting", "running")
DIED = "The export ended without a word: it was killed, or the memory ran out."
DISK_IS_FULL = "The export ended without a word: the disk is full."
MIN_FREE_BYTES = 2**20
"""Room of a disk that is too full for the last words of an export."""
RESUMES = "export it again: it continues with the files that are finished"


def start(run: Run, plan: ExportPlan, token: str = "") -> str:
    """Start an export and return its name. What an earlier attempt has finished is used again.

    `token` is for the Hub: the worker gets it through a pipe, and it is written nowhere. Raises
    SpecError if another export of this run is under way, and OSError.
    """
    request = plan.request
    place = exports_folder(run)
    place.mkdir(exist_ok=True)
    try:
        with FileLock(place / ".lock", timeout=SECONDS_TO_LOCK):
            if active := active_export(run):
                problem = f"{active} of this run is under way"
                raise SpecError(Problem("export", problem, "wait for its end, or stop it"))
            folder = _prepare(run, request)
            _spawn(run, folder, token)
    except Timeout:
        problem = "another program starts an export of this run"
        raise SpecError(Problem("export", problem, "try again")) from None
    return request.name


def active_export(run: Run) -> str:
    """Return the name of the export that is under way, "" if none is."""
    for folder in exports_folder(run).glob(f"{UNFINISHED}*/"):
        # A worker that has written its last status only has to exit.
        if ExportStatus.read(folder).state in ACTIVE and _is_running(folder):
            return folder.name.removeprefix(UNFINISHED)
    return ""


def status_of(run: Run, name: str) -> ExportStatus:
    """Return how far an export is; finished if its worker has put it in its place."""
    folder = unfinished_folder(run, name)
    if not run.folder.is_dir():
        restore = f"restore it with `python app.py runs restore {run.id}`, and export it again"
        return ExportStatus(
            "failed", error="The run was deleted while it was exported.", fix=restore
        )
    if not folder.is_dir():
        return _finished(run, name) or ExportStatus("stopped")
    status = ExportStatus.read(folder)
    if status.state in ACTIVE and not _is_running(folder):
        if (folder / STOP).exists():
            return ExportStatus("stopped")
        if not (folder / PROCESS).exists():  # it begins, or its folder is being removed
            return _finished(run, name) or status
        return _died(run, status)
    return status


def _died(run: Run, last: ExportStatus) -> ExportStatus:
    """Return the status of an export whose worker could not write its last one."""
    error, fix = DIED, RESUMES
    if shutil.disk_usage(run.home.path).free < MIN_FREE_BYTES:
        error, fix = DISK_IS_FULL, f"free some space, then {RESUMES}"
    return ExportStatus("failed", last.phase, last.share, None, error, fix)


def _finished(run: Run, name: str) -> ExportStatus | None:
    is_there = any(export.name == name for export in list_exports(run))
    if is_there:
        return ExportStatus("finished", share=1.0)
    return None


def unfinished(run: Run) -> tuple[tuple[str, ExportStatus], ...]:
    """Return (name, status) of exports that are under way or have ended without a result."""
    names = []
    for folder in sorted(exports_folder(run).glob(f"{UNFINISHED}*/")):
        if (folder / REQUEST).is_file():
            names.append(folder.name.removeprefix(UNFINISHED))
    return tuple((name, status_of(run, name)) for name in names)


def request_stop(run: Run, name: str) -> None:
    """Ask an export to stop, and kill it if it does not."""
    folder = unfinished_folder(run, name)
    process = _process_of(folder)
    if process is None or not is_alive(process):
        return
    (folder / STOP).touch()
    if os.name == "posix":
        with suppress(ProcessLookupError):  # it has ended in the meantime
            os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if is_alive(process):
        with suppress(psutil.Error):
            worker = psutil.Process(process.pid)
            for each in (*worker.children(recursive=True), worker):
                each.kill()


def wait(run: Run, name: str, on_status: Callable[[ExportStatus], None]) -> ExportStatus:
    """Return the last status of an export, once it has ended."""
    while True:
        status = status_of(run, name)
        on_status(status)
        if status.state not in ACTIVE:
            return status
        time.sleep(SECONDS_BETWEEN_LOOKS)


def result_of(run: Run, name: str) -> Export:
    """Return a finished export. Raises SpecError if there is none of this name."""
    for export in list_exports(run):
        if export.name == name:
            return export
    raise SpecError(Problem("export", f"{run.id} has no export {name}", "export it first"))


def log_of(run: Run, name: str) -> Path:
    """Return the log of an export that is not finished."""
    return unfinished_folder(run, name) / LOG


def delete(run: Run, name: str) -> None:
    """Delete an export, finished or not, that is not under way. Raises SpecError."""
    if active_export(run) == name:
        raise SpecError(Problem("export", f"{name} is under way", "stop it first"))
    for folder in (exports_folder(run) / name, unfinished_folder(run, name)):
        if folder.parent == exports_folder(run) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _prepare(run: Run, request: ExportRequest) -> Path:
    """Return the folder of an export. Keeps the files of an earlier attempt at the same."""
    folder = unfinished_folder(run, request.name)
    wanted = json.loads(json.dumps({**asdict(request), "result": _stamp(run)}))
    try:
        earlier = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        earlier = None
    if earlier != wanted:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    for name in (STOP, PROCESS):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / REQUEST, wanted)
    write_json(folder / STATUS, asdict(ExportStatus("starting")))
    return folder


def _stamp(run: Run) -> str:
    """Return a text that changes when the result of a run does."""
    paths = sorted((run.folder / "output").glob("*.safetensors"))
    stats = [path.stat() for path in paths]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _spawn(run: Run, folder: Path, token: str) -> None:
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(folder)],
            cwd=ROOT,
            env=launch.environment(launch.devices_of(run)[0]) | {"TRL_EXPERIMENTAL_SILENCE": "1"},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=True,
            start_new_session=True,
        )
    assert process.stdin
    with suppress(OSError), process.stdin as pipe:
        pipe.write(token.encode())
    identity = identify(process.pid)
    if identity:
        write_json(folder / PROCESS, identity.to_json())
    threading.Thread(target=process.wait, name=f"reap export of {run.id}", daemon=True).start()


def _is_running(folder: Path) -> bool:
    process = _process_of(folder)
    return process is not None and is_alive(process)


def _process_of(folder: Path) -> ProcessId | None:
    try:
        fields = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(fields, dict):
        return ProcessId.from_json(fields)
    return None
