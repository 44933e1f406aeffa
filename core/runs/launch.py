"""Start, stop and end the program of a run on this machine. Never looks inside the program.

The program gets an argument list, a job file, no standard input, a log file (never a pipe), an
environment of named variables only, and a new session: it outlives the page, the terminal and
this process. When a run may start is decided in core/runs/queue.py.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil

from core.device import card_of, cards_together, identify, is_alive
from core.device.child import allowed_environment
from core.job import RunNotFound, SpecError
from core.runs import clusters
from core.runs.files import number_in, read_json
from core.runs.home import Home, locked, read_schedule, write_schedule
from core.runs.run import Run, read
from core.runs.states import count_oom_kills, process_of
from core.training.contract.files import write_json
from core.training.contract.job import PLACES, absolute_places, relative_places
from core.training.contract.process_id import ProcessId
from core.training.contract.status import ENDED

RUN_VARIABLE = "TAILOR_RUN"
"""Environment variable with the run's folder, by which all processes of a run are found."""
SECONDS_TO_TERMINATE = 120
"""Time for a program to reach the end of its step after a stop request."""
SECONDS_TO_SAVE = 600
"""The same if it is writing a checkpoint."""
SECONDS_TO_DIE = 5
"""Time for the system to remove a killed process; one that hangs in a driver may stay forever."""
SECONDS_TO_EXIT = 20
"""Time for a program to exit after it has written that it has ended."""


def spawn(run: Run, devices: Sequence[str]) -> None:
    """Start a run's program on devices, where it resumes from its newest checkpoint.

    Raises OSError.

    The caller must hold the lock. Deletes the `stop`, `exit.json` and `status.json` of earlier
    attempts.
    """
    inode = run.folder.stat().st_ino
    fields: dict[str, object] = {"asked": time.time(), "folder_inode": inode}
    _follow_moved_home(run)
    write_json(run.folder / "process.json", fields)
    for name in ("stop", "exit.json", "status.json"):
        (run.folder / name).unlink(missing_ok=True)
    process = _open(run, devices)
    identity = identify(process.pid)
    arguments = (run, process, identity)
    threading.Thread(target=_reap, args=arguments, name=f"reap {run.id}", daemon=True).start()
    if identity:
        with suppress(OSError):  # on a full disk, status.json still names the process
            write_json(run.folder / "process.json", {**fields, **identity.to_json()})


def _follow_moved_home(run: Run) -> None:
    """Write places into the job file of an early version whose home was moved since."""
    path = run.folder / "job.json"
    fields = read_json(path)
    found = absolute_places(fields, run.folder)
    moved = {name: getattr(run.job, name) for name in PLACES if name in fields}
    if any(moved[name] != found[name] for name in moved):
        moved |= relative_places(moved, run.folder, run.home.path)
        write_json(path, {**fields, **moved})


def request_stop(run: Run, reason: str = "") -> None:
    """Ask a run to save a checkpoint and end, or take it out of the queue.

    `reason` is one sentence for those who wonder, "" if a person asks.

    The request is a file, which works everywhere; a signal only wakes the program sooner. A second
    request does nothing, nor does one for an earlier attempt of the run.
    """
    if not run.is_active:
        return
    with suppress(RunNotFound):
        with locked(run.home):
            now = read(run.home, run.id)
            is_told = False
            if now.is_active and now.submission:
                is_told = clusters.note_stop(now, reason)
            elif now.state == "queued":
                _leave_queue(now)
            elif now.is_active and run.process in (None, now.process):
                _request_stop_of_program(now, reason)
        if is_told:
            clusters.tell_stop(now)


def enforce_stop(run: Run) -> None:
    """Kill a run that has not ended in time after a stop request.

    An empty `stop` file, which a user may create by hand, sets no limit.
    """
    if run.state != "stopping" or run.submission:  # its cluster is asked by clusters.refresh
        return
    # the monotonic clock is the same for all processes, and setting the time does not change it
    requested = number_in(read_json(run.folder / "stop"), "monotonic")
    limit = SECONDS_TO_SAVE if run.status.phase == "save" else SECONDS_TO_TERMINATE
    if requested is not None and time.monotonic() - requested > limit:
        kill(run)


def is_exiting(run: Run) -> bool:
    """Return True while the program of an ended run still releases its device."""
    process = process_of(run.folder)
    silence = abs(time.time() - run.status.updated)
    return process is not None and is_alive(process) and silence < SECONDS_TO_EXIT


def kill(run: Run) -> None:
    """Kill a run's program and everything that it has started, and wait until all are gone."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while time.monotonic() < deadline:
        processes = _process_tree(run)  # again each time, because they may start others
        if not processes:
            return
        for process in processes:
            with suppress(psutil.Error):  # it has ended in the meantime
                process.kill()
        time.sleep(0.02)


def wait(home: Home, run_id: str, seconds: float) -> Run:
    """Return a run once it has ended or the time is over. Enforces a stop request, and asks its
    cluster."""
    deadline = time.monotonic() + seconds
    run = read(home, run_id)
    while run.is_active and time.monotonic() < deadline:
        enforce_stop(run)
        if run.submission:
            clusters.refresh(home)
        time.sleep(0.1)
        run = read(home, run_id)
    return run


def devices_of(run: Run) -> tuple[str, ...]:
    """Return the names of the GPUs that a run occupies, as CUDA_VISIBLE_DEVICES takes them.

    "0" on a machine without GPUs. A run whose GPUs are gone takes the first.
    """
    try:
        cards = cards_together(run.job.device, run.job.num_devices)
    except SpecError:
        first = card_of(0)
        cards = (first,) if first else ()
    return tuple(card.cuda_name for card in cards) or ("0",)


def environment(device: str = "0") -> dict[str, str]:
    """Return the environment of a program that trains on a device, or on several with commas
    between.

    It shows the program these GPUs alone: TRL refuses several in one process. A GPU that NVML does
    not list stays as the user chose it.
    """
    variables = allowed_environment("basic", "hub", "training")
    if card_of(0) is None:
        names = variables.get("CUDA_VISIBLE_DEVICES", device).split(",")
        # CUDA sees no GPU at all if one is named twice.
        device = names[0] if len(set(names)) == len(names) else ""
    return {
        **variables,
        "CUDA_VISIBLE_DEVICES": device,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts
    }


def _open(run: Run, devices: Sequence[str]) -> "subprocess.Popen[bytes]":
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training", "job.json"],
            cwd=run.folder,
            env={**environment(",".join(devices)), RUN_VARIABLE: str(run.folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=True,
            **detached,
        )


def _reap(run: Run, process: "subprocess.Popen[bytes]", identity: ProcessId | None) -> None:
    """Wait for the end of a program, so that it leaves no zombie, and record how it ended."""
    kills_before = count_oom_kills()
    code = process.wait()
    is_out_of_memory = False
    if code == -9 and kills_before is not None:
        is_out_of_memory = count_oom_kills() != kills_before
    fields: dict[str, object] = {"code": code, "is_out_of_memory": is_out_of_memory}
    if identity:
        fields |= identity.to_json()
    with suppress(OSError):  # the run was deleted, or the disk is full
        write_json(run.folder / "exit.json", fields)
        run.home.touch()


def _request_stop_of_program(run: Run, reason: str) -> None:
    if (run.folder / "stop").exists():
        return
    write_json(run.folder / "stop", {"monotonic": time.monotonic(), "reason": reason})
    if os.name == "posix" and run.process:
        with suppress(ProcessLookupError):  # it has ended in the meantime
            os.kill(run.process.pid, signal.SIGTERM)


def _leave_queue(run: Run) -> None:
    """Take a waiting run out of the queue. A new one becomes stopped, others what they were."""
    schedule = read_schedule(run.home)
    waiting = tuple(run_id for run_id in schedule.waiting if run_id != run.id)
    write_schedule(run.home, replace(schedule, waiting=waiting))
    if run.status.state not in ENDED:
        write_json(run.folder / "status.json", {"state": "stopped"})
    run.home.touch()


def _process_tree(run: Run) -> tuple[psutil.Process, ...]:
    """Return the living processes of a run.

    They are the program's descendants and every process with RUN_VARIABLE, which those keep that
    lost their parent. Neither is true of a foreign process that got an old pid.
    """
    processes = [each for each in psutil.process_iter() if _run_folder_of(each) == str(run.folder)]
    if run.process and is_alive(run.process):
        with suppress(psutil.Error):  # it has ended in the meantime
            leader = psutil.Process(run.process.pid)
            processes += [*leader.children(recursive=True), leader]
    return tuple(dict.fromkeys(processes))


def _run_folder_of(process: psutil.Process) -> str | None:
    try:
        return dict[str, str](process.environ()).get(RUN_VARIABLE)
    except (psutil.Error, OSError):
        return None  # another user's, or it has ended in the meantime
