"""Who trains next: runs wait for their device in order, on the disk, and any process may move the queue on.

A run that crashed is never started again by itself; one that cannot be started fails, and the queue goes on.
"""

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from core import runs
from core.job import Problem, RunNotFound, SpecError
from core.runs import TRANSITIONS, Home, Run, Schedule, launch

Direction = Literal["up", "down"]
SECONDS_BETWEEN_LOOKS = 1.0


def submit(home: Home, run: Run) -> Run:
    """Puts a run, new or ended early, at the end of the queue, and starts it if its device is free.

    Returns the run as it is then. Raises SpecError for a run that is under way or finished.
    """
    with runs.locked(home):
        schedule = runs.read_schedule(home)
        if run.id not in schedule.waiting:
            _require_startable(runs.read(home, run.id))
            runs.write_schedule(home, replace(schedule, waiting=(*schedule.waiting, run.id)))
            home.touch()
        _go_on(home)
    return runs.read(home, run.id)


def advance(home: Home) -> None:
    """Starts what can be started, and ends what was asked to stop and does not.

    Costs next to nothing when there is nothing to do; safe to call from several processes at any time. What a full disk
    does not let happen now, a later call does.
    """
    schedule = runs.read_schedule(home)
    if schedule.waiting or schedule.devices:
        with (
            suppress(SpecError, OSError),
            runs.locked(home, seconds=0),
        ):  # else another process is at it
            _go_on(home)


def keep_advancing(home: Home) -> threading.Thread:
    """Calls `advance` every second, in the background, until this process ends."""

    def look() -> None:
        while True:
            advance(home)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    thread = threading.Thread(target=look, name="queue", daemon=True)
    thread.start()
    return thread


def waiting(home: Home) -> tuple[Run, ...]:
    """The runs in the queue, the next first."""
    found = []
    for run_id in runs.read_schedule(home).waiting:
        with suppress(RunNotFound, SpecError):
            found.append(runs.read(home, run_id))
    return tuple(found)


def move(home: Home, run_id: str, direction: Direction) -> tuple[Run, ...]:
    """Swaps a waiting run with the one before or after it. Returns the queue. Raises SpecError if it does not wait."""
    with runs.locked(home):
        schedule = runs.read_schedule(home)
        if run_id not in schedule.waiting:
            raise SpecError(
                Problem("run", f"{run_id} does not wait", "`runs queue` lists those that do")
            )
        order = list(schedule.waiting)
        place = order.index(run_id)
        other = min(max(place + (1 if direction == "down" else -1), 0), len(order) - 1)
        order[place], order[other] = order[other], order[place]
        runs.write_schedule(home, replace(schedule, waiting=tuple(order)))
    return waiting(home)


def _require_startable(run: Run) -> None:
    """Raises SpecError for a run that is under way or finished, or whose device is not there."""
    is_under_way = run.state == "starting" and (run.folder / "process.json").exists()
    if is_under_way or "queued" not in TRANSITIONS[run.state]:
        fix = (
            "only a run that ended early can be resumed"
            if run.state == "finished"
            else "stop it first"
        )
        raise SpecError(Problem("run", f"{run.id} is {run.state}", fix))
    visible = launch.visible_devices()
    if visible and run.job.device and run.job.device not in visible:
        fix = f"choose {', '.join(map(str, visible))}"
        raise SpecError(Problem("device", f"there is no GPU {run.job.device} in sight", fix))


def _go_on(home: Home) -> None:
    """One look at every device and every run that waits. Only for who holds the lock."""
    schedule = _with_free_devices(home)
    for run_id in schedule.waiting:
        schedule = _start_if_free(home, run_id, schedule)


def _with_free_devices(home: Home) -> Schedule:
    """The schedule without the runs that have ended, and what those left running is ended too; with the runs at work
    that it does not know of, such as one that was started by hand.
    """
    schedule = runs.read_schedule(home)
    at_work = {launch.device_of(run): run.id for run in runs.list_runs(home) if run.process}
    busy = at_work | {
        device: run_id for device, run_id in schedule.devices.items() if _is_busy(home, run_id)
    }
    if busy == schedule.devices:
        return schedule
    schedule = replace(schedule, devices=busy)
    runs.write_schedule(home, schedule)
    return schedule


def _is_busy(home: Home, run_id: str) -> bool:
    """True while a run keeps its device. Sees to it that it lets go in the end."""
    try:
        run = runs.read(home, run_id)
    except (RunNotFound, SpecError):
        return False
    if run.state in runs.ENDED or run.state == "queued":
        if launch.is_winding_up(run):
            return True
        launch.kill(run)
        return False
    launch.enforce_stop(run)
    return True


def _start_if_free(home: Home, run_id: str, schedule: Schedule) -> Schedule:
    """The schedule after a waiting run has had its chance: started, failed to start, gone, or still waiting.

    The run leaves the queue before its program starts: whatever crashes in between, nothing is started twice.
    """
    rest = tuple(each for each in schedule.waiting if each != run_id)
    try:
        run = runs.read(home, run_id)
    except (RunNotFound, SpecError):
        schedule = replace(schedule, waiting=rest)
        runs.write_schedule(home, schedule)
        return schedule
    if (device := launch.device_of(run)) in schedule.devices:
        return schedule
    schedule = Schedule(rest, {**schedule.devices, device: run_id})
    runs.write_schedule(home, schedule)
    try:
        launch.spawn(run)
    except OSError as error:
        said = f"The training program could not be started: {error.strerror or error}."
        with suppress(OSError):
            runs.write_json(run.folder / "status.json", {"state": "failed", "error": said})
    home.touch()
    return schedule
