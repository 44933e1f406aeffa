"""How the program of a run is started, stopped and ended on this machine. Never looks inside the program.

The child gets an argument list, a job file that we wrote, no standard input, a log file (never a pipe), an environment
of named variables only, and a session of its own: it outlives the page, the terminal and this process. Whose turn it
is to start is for core.queue to say.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil

from core import runs
from core.device import identify, is_alive, this_machine
from core.device.child import allowed_environment
from core.job import RunNotFound
from core.runs import Home, Run
from core.training.contract.process_id import ProcessId

MARK = "TAILOR_RUN"
"""The variable by which everything that a run's program starts can be told: it holds the run's folder."""

SECONDS_TO_TERMINATE = 120
"""How long a program that was asked to stop may take to reach the end of its step."""
SECONDS_TO_SAVE = 600
"""How long, in all, if it is writing its checkpoint."""
SECONDS_TO_DIE = 5
"""How long the system may take to remove a killed program; one that hangs in a driver may never go."""
SECONDS_TO_EXIT = 20
"""How long it may take to be gone once it has said that it has ended."""


def spawn(run: Run) -> None:
    """Starts a run's program, which goes on from its newest checkpoint if it has one. Raises OSError.

    Only for who holds the lock: what earlier lives of the run left behind, such as a wish to stop, is swept away.
    """
    asked = {"asked": time.time()}
    runs.write_json(run.folder / "process.json", asked)
    for name in ("stop", "exit.json", "status.json"):
        (run.folder / name).unlink(missing_ok=True)
    process = _open(run)
    identity = identify(process.pid)
    threading.Thread(
        target=_reap, args=(run, process, identity), name=f"reap {run.id}", daemon=True
    ).start()
    with suppress(OSError):  # on a full disk the program's own word has to do
        runs.write_json(
            run.folder / "process.json", asked | (identity.to_json() if identity else {})
        )


def request_stop(run: Run) -> None:
    """Asks a run to save a checkpoint and end: a file, which works everywhere; the signal only wakes it sooner.

    Asked again, nothing more happens. Who waits in the queue leaves it. A wish that was meant for an earlier life of
    the run than the present one is forgotten.
    """
    if not run.is_active:
        return
    with runs.locked(run.home), suppress(RunNotFound):
        now = runs.read(run.home, run.id)
        if now.state == "queued":
            _leave_queue(now)
        elif (
            now.is_active
            and run.process in (None, now.process)
            and not (now.folder / "stop").exists()
        ):
            runs.write_json(now.folder / "stop", {"monotonic": time.monotonic()})
            if os.name == "posix" and now.process:
                with suppress(ProcessLookupError):  # ended by itself meanwhile
                    os.kill(now.process.pid, signal.SIGTERM)


def enforce_stop(run: Run) -> None:
    """Ends a run that was asked to stop and has had its time; one that was asked by hand, with an empty file, has all.

    The monotonic clock is one for all processes, and nobody sets it.
    """
    asked = (
        runs.number_in(runs.read_json(run.folder / "stop"), "monotonic")
        if run.state == "stopping"
        else None
    )
    limit = SECONDS_TO_SAVE if run.status.phase == "save" else SECONDS_TO_TERMINATE
    if asked is not None and time.monotonic() - asked > limit:
        kill(run)


def is_winding_up(run: Run) -> bool:
    """True for a moment after a program's last word, while it lets go of its device."""
    process = ProcessId.from_json(runs.read_json(run.folder / "process.json"))
    silence = abs(time.time() - run.status.updated)
    return process is not None and is_alive(process) and silence < SECONDS_TO_EXIT


def kill(run: Run) -> None:
    """Ends a run's program and all that it has started at once, without a checkpoint, and waits until it is gone."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (
        family := _family(run)
    ) and time.monotonic() < deadline:  # again, for what was started meanwhile
        for process in family:
            with suppress(psutil.Error):  # ended by itself meanwhile
                process.kill()
        time.sleep(0.02)


def wait(home: Home, run_id: str, seconds: float) -> Run:
    """The run once it is no longer active, or as it is when the time is over; sees to it that a stop is obeyed."""
    deadline = time.monotonic() + seconds
    while (run := runs.read(home, run_id)).is_active and time.monotonic() < deadline:
        enforce_stop(run)
        time.sleep(0.1)
    return run


def device_of(run: Run) -> str:
    """What a run occupies: the index of its GPU, which is the first in sight where the job leaves that open; without
    GPUs there is one place, "0".
    """
    visible = visible_devices()
    return str(run.job.device if run.job.device in visible else visible[0]) if visible else "0"


def environment(device: str = "0") -> dict[str, str]:
    """What the program may see. One GPU, counted as NVML counts: with several in sight and no launcher, TRL refuses to
    train. A card that NVML does not show, such as a part of one, is left as it was chosen.
    """
    kept = allowed_environment("basic", "hub", "training")
    hidden = kept.get("CUDA_VISIBLE_DEVICES", device).split(",")[0]
    chosen = {
        "CUDA_VISIBLE_DEVICES": device if visible_devices() else hidden,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    return kept | chosen


def visible_devices() -> tuple[int, ...]:
    """The indices of the GPUs that a run may have."""
    return tuple(gpu.index for gpu in this_machine().gpus)


def _open(run: Run) -> "subprocess.Popen[bytes]":
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training", "job.json"],
            cwd=run.folder,
            env=environment(device_of(run)) | {MARK: str(run.folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=True,
            **detached,
        )


def _reap(run: Run, process: "subprocess.Popen[bytes]", identity: ProcessId | None) -> None:
    """Waits for the end of a program, so that no zombie stays behind, and writes down how it ended."""
    num_kills_before = runs.num_oom_kills()
    code = process.wait()
    num_kills = runs.num_oom_kills()
    is_out_of_memory = code == -9 and num_kills_before is not None and num_kills != num_kills_before
    fields = {"code": code, "is_out_of_memory": is_out_of_memory}
    with suppress(OSError):  # the run was deleted, or the disk is full
        runs.write_json(run.folder / "exit.json", fields | (identity.to_json() if identity else {}))
        run.home.touch()


def _leave_queue(run: Run) -> None:
    """Takes a waiting run out of the queue; what it was before it is again, and a new one is stopped."""
    schedule = runs.read_schedule(run.home)
    waiting = tuple(each for each in schedule.waiting if each != run.id)
    runs.write_schedule(run.home, replace(schedule, waiting=waiting))
    if run.status.state not in runs.ENDED:
        runs.write_json(run.folder / "status.json", {"state": "stopped"})
    run.home.touch()


def _family(run: Run) -> tuple[psutil.Process, ...]:
    """What lives of a run's program and of all that it has started: its descendants, and who carries its mark, which
    those keep that lost their parent. Neither can be said of another process that has got an old number.
    """
    found = [each for each in psutil.process_iter() if _mark_of(each) == str(run.folder)]
    if run.process and is_alive(run.process):
        with suppress(psutil.Error):  # ended by itself meanwhile
            leader = psutil.Process(run.process.pid)
            found += [*leader.children(recursive=True), leader]
    return tuple(dict.fromkeys(found))


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return dict[str, str](process.environ()).get(MARK)
    except (psutil.Error, OSError):
        return None  # another user's, or ended by itself meanwhile
