"""Tasks on a device: none beside a run or another task, and a chat gives way."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from core import runs
from core.device import identify
from core.job import SpecError
from core.runs import Home, launch, queue
from core.runs.home import Schedule, read_schedule, write_schedule
from core.runs.queue import Reservation
from core.runs.tasks import Task, this_process
from tests.builders.fake_runs import NEVER_END, SLOW_TO_EXIT, NewRun, advanced, ended, stepping

SLEEP = "import time; time.sleep(60)"
SERVER = """
import subprocess, sys, time
from core.runs import Home, queue
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
reservation = queue.reserve(Home.find(sys.argv[1]), 0, "check", "the check of a run")
reservation.attach(child.pid)
print(child.pid, flush=True)
time.sleep(60)
"""


class Programs:
    """Sleeping programs that stand for the child of a task."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, reservation: Reservation) -> "subprocess.Popen[bytes]":
        self.started.append(subprocess.Popen([sys.executable, "-c", SLEEP]))
        reservation.attach(self.started[-1].pid)
        return self.started[-1]


@pytest.fixture
def programs() -> Iterator[Programs]:
    found = Programs()
    yield found
    for each in found.started:
        each.kill()
        each.wait()


def test_a_run_waits_for_a_check_and_starts_after_it(
    home: Home, new_run: NewRun, programs: Programs
) -> None:
    with queue.reserved(home, 0, "check", "the check of a run") as reservation:
        program = programs.start(reservation)
        run = queue.submit(home, new_run())
        queue.advance(home)
        assert runs.read(home, run.id).state == "queued"
        program.kill()
        program.wait()
    assert advanced(home, run, lambda run: run.state != "queued").state != "queued"


def test_a_run_ends_a_chat_and_is_named_as_the_reason(
    home: Home, new_run: NewRun, programs: Programs
) -> None:
    reservation = queue.reserve(home, 0, "chat", "the chat with demo")
    program = programs.start(reservation)
    run = queue.submit(home, new_run(seed=NEVER_END))
    assert run.state in ("starting", "running")
    assert program.wait(10) < 0
    assert reservation.is_lost()
    assert f"the run {run.id} uses the device" in str(reservation.error())


def test_a_chat_that_was_ended_while_it_started_gets_no_device(
    home: Home, new_run: NewRun, programs: Programs
) -> None:
    reservation = queue.reserve(home, 0, "chat", "the chat with demo")
    queue.submit(home, new_run(seed=NEVER_END))
    with pytest.raises(SpecError, match="uses the device that the chat with demo needs"):
        programs.start(reservation)


def test_no_task_starts_beside_a_run(home: Home, new_run: NewRun) -> None:
    run = stepping(home, queue.submit(home, new_run(seed=NEVER_END)))
    with pytest.raises(SpecError, match=f"the run {run.id} uses the device that the check needs"):
        queue.reserve(home, 0, "check", "the check")
    launch.kill(run)


def test_a_check_ends_a_chat_and_refuses_a_second_check(home: Home, programs: Programs) -> None:
    chat = programs.start(queue.reserve(home, 0, "chat", "the chat with demo"))
    with queue.reserved(home, 0, "check", "the check of a run"):
        assert chat.wait(10) < 0
        with pytest.raises(SpecError, match="the check of a run uses the device that the export"):
            queue.reserve(home, 0, "export", "the export")
    assert read_schedule(home).tasks == {}


def test_a_second_chat_is_refused(home: Home, programs: Programs) -> None:
    programs.start(queue.reserve(home, 0, "chat", "the chat with demo"))
    with pytest.raises(SpecError, match="the chat with demo uses"):
        queue.reserve(home, 0, "chat", "another chat")


def test_a_task_waits_for_an_ended_run_that_still_exits(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_EXIT", 1)
    run = stepping(home, queue.submit(home, new_run(seed=SLOW_TO_EXIT)))
    launch.request_stop(run)
    ended(home, run)
    with queue.reserved(home, 0, "check", "the check of a run"):
        assert read_schedule(home).devices == {}


def test_the_death_of_its_program_frees_a_device(home: Home, programs: Programs) -> None:
    reservation = queue.reserve(home, 0, "export", "the export of a run")
    program = programs.start(reservation)
    program.kill()
    program.wait()
    queue.advance(home)
    assert read_schedule(home).tasks == {}
    assert not reservation.is_lost()


def test_the_death_of_its_owner_ends_a_task(home: Home) -> None:
    command = [sys.executable, "-c", SERVER, str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        child = identify(int(server.stdout.readline()))
        server.kill()
    assert child
    assert read_schedule(home).tasks
    queue.advance(home)
    assert read_schedule(home).tasks == {}
    assert _ended(child.pid)


def test_a_schedule_keeps_its_tasks(home: Home) -> None:
    task = Task("1", "check", "the check", this_process(), this_process())
    schedule = Schedule(("a",), {"1": "b"}, {"0": task})
    write_schedule(home, schedule)
    assert read_schedule(home) == schedule


def test_a_waiting_run_says_what_it_waits_for(home: Home, new_run: NewRun) -> None:
    with queue.reserved(home, 0, "check", "the check of a run"):
        run = queue.submit(home, new_run())
        said = queue.why_it_waits(run)
    assert said == "Waiting for the device, which the check of a run uses."


def test_damaged_tasks_are_left_out(home: Home) -> None:
    text = '{"waiting": [], "devices": {}, "tasks": {"0": 1, "1": {"kind": "chat"}, "2": null}}'
    (home.path / "queue.json").write_text(text)
    assert read_schedule(home) == Schedule()
    (home.path / "queue.json").write_text('{"tasks": 7}')
    assert read_schedule(home) == Schedule()


def _ended(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while identify(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return identify(pid) is None
