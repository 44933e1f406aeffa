"""How the program of a run is started, stopped and resumed on this machine. Never looks inside the program.

The child gets an argument list, a job file that we wrote, no standard input, a log file (never a pipe), an environment
of named variables only, and a session of its own: it outlives the page, the terminal and this process.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import psutil
from filelock import FileLock

from core import runs
from core.device import identify, is_alive
from core.job import Problem, SpecError
from core.runs import Home, Run

ENVIRONMENT = re.compile(
    "PATH|HOME|USER|LANG|LC_ALL|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|USERPROFILE|APPDATA|LOCALAPPDATA|LD_LIBRARY_PATH"
    "|HTTPS?_PROXY|NO_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME"
    "|(CUDA|NVIDIA|PYTORCH|TORCH|TRITON|NCCL|OMP|MKL|HF|TRANSFORMERS|BNB)_.*"
)
"""The variables a program gets; everything else, secrets of other tools included, stays out."""


SECONDS_TO_TERMINATE = 120
"""How long a program may take to reach the end of its step and save."""


def start(home: Home, run: Run) -> None:
    """Starts a run's program, or continues it from its newest checkpoint.

    Raises SpecError if another run is training on this device.
    """
    with FileLock(home.path / "start.lock"):
        if busy := next((other for other in runs.list_runs(home) if other.id != run.id and _holds_device(other)), None):
            raise SpecError((Problem("gpu", f"{busy.id} is training on it", "wait for it, or stop it first"),))
        (run.folder / "stop").unlink(missing_ok=True)
        (run.folder / "status.json").unlink(missing_ok=True)
        process = _spawn(run)
        if identity := identify(process.pid):
            fields = {"pid": identity.pid, "pid_start_time": identity.start_time, "boot_id": identity.boot_id}
            runs.write_json(run.folder / "process.json", fields)
    threading.Thread(target=process.wait, name=f"reap {run.id}", daemon=True).start()  # leaves no zombie behind


def request_stop(run: Run) -> None:
    """Asks a run to save a checkpoint and end: a file, which works everywhere; the signal only wakes it sooner."""
    if not run.is_active:
        return
    (run.folder / "stop").touch()
    process = runs.process_of(run)
    if os.name == "posix" and process and is_alive(process):
        with suppress(ProcessLookupError):  # ended by itself meanwhile
            os.kill(process.pid, signal.SIGTERM)


def kill(run: Run) -> None:
    """Ends a run's program and its children at once, without a checkpoint."""
    process = runs.process_of(run)
    if not process or not is_alive(process):
        return
    with suppress(psutil.NoSuchProcess):  # ended by itself meanwhile
        parent = psutil.Process(process.pid)
        for child in (*parent.children(recursive=True), parent):
            child.kill()


def wait(home: Home, run_id: str, seconds: float) -> Run:
    """The run once it is no longer active, or as it is when the time is over."""
    deadline = time.monotonic() + seconds
    while (run := runs.read(home, run_id)).is_active and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def _holds_device(run: Run) -> bool:
    process = runs.process_of(run)
    return run.is_active and process is not None and is_alive(process)


def _spawn(run: Run) -> "subprocess.Popen[bytes]":
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training", "job.json"],
            cwd=run.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=True,
            **detached,
        )


def environment() -> dict[str, str]:
    """What the program may see. One GPU, the first that this process may use, counted as NVML counts: with several in
    sight and no launcher, TRL refuses to train.
    """
    kept = {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name.upper())}
    chosen = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": kept.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
    }
    return kept | chosen | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
