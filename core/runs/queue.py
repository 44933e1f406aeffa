"""Decide which run trains next. Runs wait for their device; any process may advance the queue.

A task (core/runs/tasks.py) takes a free device at once, or is refused. A chat gives way to a run.
A run that crashed is never started again automatically. One that cannot be started fails, and the
next one gets its turn.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.device import card_of, cards_together
from core.job import Problem, RunNotFound, SpecError
from core.runs import card_probe, clusters, launch
from core.runs.engines import Placement
from core.runs.engines import script as submit_script
from core.runs.engines.submission import forget
from core.runs.home import Home, Schedule, locked, read_schedule, write_schedule
from core.runs.listing import list_runs
from core.runs.run import Run, read
from core.runs.sending import has_begun, require_may_start, send
from core.runs.tasks import Task, TaskKind, end, this_process, with_child, without_ended
from core.training.contract.files import write_json
from core.training.contract.status import ENDED

Direction = Literal["up", "down"]
SECONDS_BETWEEN_ADVANCES = 1.0
SECONDS_BETWEEN_TRIES = 0.2


def submit(home: Home, run: Run, placement: Placement | None = None) -> Run:
    """Put a run at the end of the queue, and start it if its device is free; or send it to a
    cluster. None means where it trained before.

    Raises SpecError for a run that is active or finished, whose GPU this machine lacks, or that the
    cluster refuses.
    """
    clusters.wait_for_exit(run)
    if placement is None:
        placement = read(home, run.id).placement
    if placement.is_here:
        with locked(home):
            _submit_here(home, read(home, run.id))
    else:
        send(home, [run], placement)
    return read(home, run.id)


def submit_together(home: Home, runs: Sequence[Run], placement: Placement, script: Path) -> None:
    """Queue several runs, or send them to a cluster, as one job if it can have tasks, whose script
    is written to `script`. Those that another program has started by now are left to it.

    Raises SpecError if one of them may not start, or if the cluster refuses.
    """
    for run in runs:
        clusters.wait_for_exit(run)
    if not placement.is_here:
        send(home, runs, placement, script)
        return
    with locked(home):
        for run in runs:
            now = read(home, run.id)
            if not has_begun(now):
                _submit_here(home, now)


def require_seen(home: Home, placement: Placement) -> None:
    """Raise SpecError if a node of a cluster says that it does not see the home, before a run is
    created for it."""
    if problem := clusters.look_from_a_node(home, placement):
        raise SpecError(problem)


def _submit_here(home: Home, run: Run) -> None:
    schedule = read_schedule(home)
    if run.id not in schedule.waiting:
        require_may_start(run)
        cards_together(run.job.device, run.job.num_devices)
        if run.submission:
            # A job that the cluster starts all the same does not train.
            submit_script.renew_token(run.folder)
            forget(run.folder)
        write_schedule(home, replace(schedule, waiting=(*schedule.waiting, run.id)))
        home.touch()
    _start_waiting(home)


def advance(home: Home) -> None:
    """Start every run whose turn it is, and kill runs that ignore a stop request. Ask the
    clusters about theirs.

    Cheap if there is nothing to do; safe to call from several processes at any time.
    """
    _advance_here(home)
    clusters.refresh(home)


def _advance_here(home: Home) -> None:
    schedule = read_schedule(home)
    if schedule.waiting or schedule.devices or schedule.tasks:
        # if another process holds the lock, it does the same; if the disk is full, try again later
        with suppress(SpecError, OSError), locked(home, seconds=0):
            _start_waiting(home)


def keep_advancing(home: Home) -> tuple[threading.Thread, ...]:
    """Do what `advance` does every second in the background, until this process ends.

    Clusters have a thread of their own: a slow one must not hold up the runs of this machine.
    """
    actions = {"queue": _advance_here, "clusters": clusters.refresh}
    threads = []
    for name, act in actions.items():
        threads.append(threading.Thread(target=_repeat, args=(act, home), name=name, daemon=True))
        threads[-1].start()
    return tuple(threads)


def _repeat(act: Callable[[Home], None], home: Home) -> None:
    while True:
        act(home)
        time.sleep(SECONDS_BETWEEN_ADVANCES)


def waiting(home: Home) -> tuple[Run, ...]:
    """Return the runs in the queue, the next first."""
    runs = (_read_or_none(home, run_id) for run_id in read_schedule(home).waiting)
    return tuple(run for run in runs if run)


def ask_clusters(home: Home) -> tuple[Run, ...]:
    """Return the runs that wait or train on a cluster, which is asked if it is time to."""
    clusters.refresh(home)
    runs = (_read_or_none(home, run_id) for run_id in read_schedule(home).submitted)
    return tuple(run for run in runs if run and run.is_active)


def why_it_waits(run: Run) -> str:
    """Return the sentence on what keeps a run of this machine waiting."""
    schedule = read_schedule(run.home)
    for device in launch.devices_of(run):
        user = user_of(run.home, schedule, device)
        holder = _read_or_none(run.home, schedule.devices.get(device, ""))
        if holder and not card_probe.has_failed(holder):
            if holder.id == run.id:
                return "Waiting: its earlier program still releases the device."
            if holder.state in (*ENDED, "queued"):
                return f"Waiting: {user} has ended and still releases the device."
        if user:
            return f"Waiting for the device, which {user} uses."
    return "Waiting for the device, which another run uses."


def move(home: Home, run_id: str, direction: Direction) -> tuple[Run, ...]:
    """Swap a waiting run with the one before or after it. Return the queue.

    Raises SpecError if it does not wait.
    """
    with locked(home):
        schedule = read_schedule(home)
        if run_id not in schedule.waiting:
            problem = Problem("run", f"{run_id} is not waiting", "`runs queue` lists waiting runs")
            raise SpecError(problem)
        order = list(schedule.waiting)
        place = order.index(run_id)
        other = place + 1 if direction == "down" else place - 1
        if 0 <= other < len(order):
            order[place], order[other] = order[other], order[place]
            write_schedule(home, replace(schedule, waiting=tuple(order)))
    return waiting(home)


class DeviceInUse(SpecError):
    """A run or another task has the device, which may be free later."""


@dataclass(frozen=True)
class Reservation:
    """Device that a task of this process holds."""

    home: Home
    device: str
    """Name of the GPU, as CUDA_VISIBLE_DEVICES takes it; "0" on a machine without one."""
    task: Task

    def attach(self, pid: int) -> None:
        """Name the program that does the work: its death frees the device.

        Raises SpecError if the device was given away in the meantime: kill the program then.
        """
        with locked(self.home):
            schedule = read_schedule(self.home)
            if not self._is_in(schedule):
                raise self.error()
            tasks = {**schedule.tasks, self.device: with_child(self.task, pid)}
            write_schedule(self.home, replace(schedule, tasks=tasks))

    def release(self) -> None:
        """Free the device. The program must have ended."""
        with locked(self.home):
            schedule = read_schedule(self.home)
            if self._is_in(schedule):
                tasks = {key: each for key, each in schedule.tasks.items() if key != self.device}
                write_schedule(self.home, replace(schedule, tasks=tasks))
            _start_waiting(self.home)

    def error(self) -> SpecError:
        """Return why a program that was ended from outside has lost its device."""
        return _in_use(self.home, read_schedule(self.home), self.device, self.task.title)

    def is_lost(self) -> bool:
        """Return True if the device was given to a run or another task."""
        schedule = read_schedule(self.home)
        return not self._is_in(schedule) and bool(user_of(self.home, schedule, self.device))

    def _is_in(self, schedule: Schedule) -> bool:
        task = schedule.tasks.get(self.device)
        return task is not None and task.id == self.task.id


@contextmanager
def reserved(home: Home, device: int, kind: TaskKind, title: str) -> Iterator[Reservation]:
    """Hold a device for a task that is no run: `device` as in a job, `title` as in `the check of
    RUN`.

    Start a program in it, attach it, and end it before leaving. A chat is ended by the next run or
    task that wants the device. Raises DeviceInUse if a run or another task has it, SpecError.
    """
    reservation = reserve(home, device, kind, title)
    try:
        yield reservation
    finally:
        reservation.release()


def reserve(home: Home, device: int, kind: TaskKind, title: str) -> Reservation:
    """Do what `reserved` does, for a program that outlives this call. Release it in the end.

    Waits for a run that has ended and still releases the device.
    """
    card = card_of(device)
    name = card.cuda_name if card else "0"
    task = Task(secrets.token_hex(8), kind, title, this_process())
    deadline = time.monotonic() + launch.SECONDS_TO_EXIT
    while not _take_device(home, name, task, waits=time.monotonic() < deadline):
        time.sleep(SECONDS_BETWEEN_TRIES)
    return Reservation(home, name, task)


def _take_device(home: Home, device: str, task: Task, *, waits: bool) -> bool:
    """Give a device to a task. Return False if it must wait for an ended run, and `waits`.

    Raises SpecError if a run or another task has it.
    """
    with locked(home):
        _start_waiting(home)
        schedule = read_schedule(home)
        other = schedule.tasks.get(device)
        run = _read_or_none(home, schedule.devices.get(device, ""))
        is_released_soon = run and run.state in ENDED and not card_probe.has_failed(run)
        if is_released_soon and waits:
            return False
        if device in schedule.devices or (other and not other.yields) or (other and task.yields):
            raise _in_use(home, schedule, device, task.title)
        if other:
            end(other)
        write_schedule(home, replace(schedule, tasks={**schedule.tasks, device: task}))
    return True


def user_of(home: Home, schedule: Schedule, device: str) -> str:
    """Return what holds a device, for messages; "" if it is free."""
    if run_id := schedule.devices.get(device):
        run = _read_or_none(home, run_id)
        name = run.name if run else run_id
        if run and run.state in (*ENDED, "queued") and card_probe.has_failed(run):
            return f"a test of the card, which failed under {name},"
        return f"the run {name}"
    task = schedule.tasks.get(device)
    if task:
        return task.title
    return ""


def _in_use(home: Home, schedule: Schedule, device: str, wanted: str) -> DeviceInUse:
    user = user_of(home, schedule, device) or "another program"
    fix = "wait until that has ended, or end it"
    return DeviceInUse(Problem("device", f"{user} uses the device that {wanted} needs", fix))


def _start_waiting(home: Home) -> None:
    """Give each free device to the next run that waits for it. The caller must hold the lock."""
    schedule = _release_devices(home)
    for run_id in schedule.waiting:
        schedule = _try_to_start(home, run_id, schedule)


def _release_devices(home: Home) -> Schedule:
    """Return the schedule without devices whose run or task has ended.

    It includes runs that the queue did not start, such as those started by hand.
    """
    schedule = read_schedule(home)
    started_here = set(schedule.devices.values())  # whose device is known, and need not be derived
    devices = {
        device: run.id
        for run in list_runs(home)
        if run.process and run.id not in started_here
        for device in launch.devices_of(run)
    }
    for device, run_id in schedule.devices.items():
        if _keeps_device(home, run_id, device):
            devices[device] = run_id
    held = without_ended(schedule.tasks)
    if devices != schedule.devices or held != schedule.tasks:
        schedule = replace(schedule, devices=devices, tasks=held)
        write_schedule(home, schedule)
    return schedule


def _keeps_device(home: Home, run_id: str, device: str) -> bool:
    """Return True while a run needs its device, or the device has failed and not answered since.

    Kill what an ended run has left running.
    """
    run = _read_or_none(home, run_id)
    if run is None:
        return False
    if run.state not in ENDED and run.state != "queued":
        launch.enforce_stop(run)
        return True
    if launch.is_exiting(run):
        return True
    launch.kill(run)
    return card_probe.has_failed(run) and not card_probe.answers_again(run, device)


def _try_to_start(home: Home, run_id: str, schedule: Schedule) -> Schedule:
    """Start a waiting run if its device is free. Return the updated schedule."""
    rest = tuple(each for each in schedule.waiting if each != run_id)
    run = _read_or_none(home, run_id)
    if run is None:  # deleted by hand
        schedule = replace(schedule, waiting=rest)
        write_schedule(home, schedule)
        return schedule
    devices = _free_devices(run, schedule)
    if not devices:
        return schedule
    for device in devices:
        if task := schedule.tasks.get(device):
            end(task)
    # The run leaves the queue before its program starts, so that no crash can start it twice.
    tasks = {name: task for name, task in schedule.tasks.items() if name not in devices}
    taken = {**schedule.devices, **dict.fromkeys(devices, run_id)}
    schedule = replace(schedule, waiting=rest, devices=taken, tasks=tasks)
    write_schedule(home, schedule)
    try:
        launch.spawn(run, devices)
    except OSError as error:
        reason = f"The training program could not be started: {error.strerror or error}."
        with suppress(OSError):
            write_json(run.folder / "status.json", {"state": "failed", "error": reason})
    home.touch()
    return schedule


def _free_devices(run: Run, schedule: Schedule) -> tuple[str, ...]:
    """Return the devices that a run may have now; none while it has to wait.

    One for every free device begins as soon as its first is free.
    """
    wanted = launch.devices_of(run)
    free = tuple(name for name in wanted if _is_free(schedule, name))
    takes_what_is_free = run.job.num_devices == 0 and wanted[0] in free
    if free == wanted or takes_what_is_free:
        return free
    return ()


def _is_free(schedule: Schedule, device: str) -> bool:
    """Return True if no run has a device, and no task that a run has to wait for."""
    task = schedule.tasks.get(device)
    return device not in schedule.devices and (task is None or task.yields)


def _read_or_none(home: Home, run_id: str) -> Run | None:
    try:
        return read(home, run_id)
    except (RunNotFound, SpecError):
        return None
