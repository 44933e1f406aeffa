"""Stop requests: obeyed, enforced, and never meant for another attempt."""

import json
import os
import signal
import time

import psutil
import pytest

from core import runs
from core.device import identify
from core.runs import Home, launch, queue
from tests.builders.fake_runs import (
    GRANDCHILDREN,
    HANG,
    NEVER_END,
    SLOW_TO_EXIT,
    SLOW_TO_SAVE,
    NewRun,
    ended,
    started,
)


def test_a_program_that_ignores_a_stop_is_killed_in_the_end(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(home, new_run(seed=HANG), step=3)
    monkeypatch.setattr(launch, "SECONDS_TO_TERMINATE", 0.3)
    launch.request_stop(run)
    assert runs.read(home, run.id).state == "stopping"  # at once
    assert ended(home, run, 5).state == "stopped"
    assert [row["step"] for row in run.metrics()] == [
        1,
        2,
        3,
    ]  # and the torn line is none


def test_a_program_that_is_saving_gets_more_time(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(home, new_run(seed=SLOW_TO_SAVE))
    monkeypatch.setattr(launch, "SECONDS_TO_TERMINATE", 0.5)
    launch.request_stop(run)
    run = ended(home, run)
    assert run.state == "stopped"
    assert run.has_checkpoint


def test_a_second_stop_request_changes_nothing(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=HANG), step=3)
    launch.request_stop(run)
    first = (run.folder / "stop").read_text()
    launch.request_stop(runs.read(home, run.id))
    assert (run.folder / "stop").read_text() == first


def test_a_stop_file_made_by_hand_has_no_time_limit(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_TERMINATE", 0)
    run = started(home, new_run(seed=NEVER_END))
    (run.folder / "stop").touch()
    launch.enforce_stop(runs.read(home, run.id))
    assert ended(home, run).has_checkpoint


def test_the_next_run_waits_until_the_device_is_released(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(home, new_run(seed=SLOW_TO_EXIT))
    launch.request_stop(run)
    assert ended(home, run).state == "stopped"
    waiting = queue.submit(home, new_run())
    assert waiting.state == "queued"  # the program has said its last word and still lives
    said = f"Waiting: the run {run.id} has ended and still releases the device."
    assert queue.why_it_waits(waiting) == said
    monkeypatch.setattr(launch, "SECONDS_TO_EXIT", 0)
    queue.advance(home)
    assert runs.read(home, waiting.id).process


def test_a_resumed_run_waits_for_its_own_earlier_program(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=SLOW_TO_EXIT))
    launch.request_stop(run)
    again = queue.submit(home, ended(home, run))
    assert queue.why_it_waits(again) == "Waiting: its earlier program still releases the device."


def test_a_stop_request_does_not_reach_the_next_attempt(home: Home, new_run: NewRun) -> None:
    before = started(home, new_run(seed=NEVER_END))
    launch.request_stop(before)
    stopped = ended(home, before)
    now = started(home, stopped)
    launch.request_stop(before)  # from a page that has slept
    launch.request_stop(stopped)
    assert not (now.folder / "stop").exists()
    assert runs.read(home, now.id).state == "running"


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_setting_the_clock_kills_no_run_early(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    run = started(home, new_run(seed=HANG))
    launch.request_stop(run)
    now = time.time() + jump
    monkeypatch.setattr(time, "time", lambda: now)
    launch.enforce_stop(runs.read(home, run.id))
    assert runs.read(home, run.id).state == "stopping"


def test_a_killed_run_leaves_no_process_behind(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=GRANDCHILDREN), step=4)
    pids = json.loads((run.folder / "grandchildren.json").read_text())["pids"]
    assert all(psutil.pid_exists(pid) for pid in pids)
    launch.kill(run)
    assert ended(home, run).state == "failed"
    assert not any(identify(pid) for pid in pids)


def test_processes_of_a_dead_run_end_before_the_next_starts(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=GRANDCHILDREN), step=4)
    pids = json.loads((run.folder / "grandchildren.json").read_text())["pids"]
    assert run.process
    os.kill(run.process.pid, signal.SIGKILL)
    ended(home, run)
    queue.advance(home)
    assert not any(identify(pid) for pid in pids)
