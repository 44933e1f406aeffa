"""Failures of runs, each scripted in the fake program or caused from outside."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import runs
from core.job import SpecError
from core.resolve import dataset_path, resolve
from core.runs import Home, edits, launch, queue, states
from core.runs.creation import FREE_BYTES_AFTER_RUN
from core.training.contract.files import write_json
from core.training.contract.status import ACTIVE, ENDED, TRANSITIONS
from tests.builders.fake_runs import (
    CRASH_AT_STEP_3,
    DISK_FULL,
    KILLED,
    NEVER_END,
    NewRun,
    ended,
    eventually,
    start,
    started,
    stepping,
    wait_for_exit,
)
from tests.builders.paths import ROOT

STARTER = """
import os, sys
from core import runs
from core.runs import queue
home = runs.Home.find(sys.argv[1])
queue.submit(home, runs.read(home, sys.argv[2]))
os._exit(0)
"""


def test_finished_is_a_final_state() -> None:
    assert TRANSITIONS.keys() == ACTIVE | ENDED
    assert not TRANSITIONS["finished"]
    assert all(after <= TRANSITIONS.keys() for after in TRANSITIONS.values())
    with pytest.raises(TypeError):
        TRANSITIONS["finished"] = frozenset({"running"})  # type: ignore[index]


@pytest.mark.parametrize("seed", [NEVER_END, CRASH_AT_STEP_3, KILLED])
def test_every_change_of_state_is_a_known_transition(
    home: Home, new_run: NewRun, seed: int
) -> None:
    run = queue.submit(home, new_run(seed=seed))
    seen = [run.state]
    while run.is_active:
        if run.step == 2:
            launch.request_stop(run)
        run = runs.read(home, run.id)
        seen += [run.state] if run.state != seen[-1] else []
    assert all(after in TRANSITIONS[before] for before, after in pairwise(seen)), seen


def test_a_program_that_kills_itself_fails_with_the_signal(home: Home, new_run: NewRun) -> None:
    start(home, run := new_run(seed=KILLED))
    run = wait_for_exit(home, run)
    assert (run.state, run.cause) == ("failed", "signal")
    assert "SIGKILL" in run.error
    assert "after step 3" in run.error


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_signal_from_outside_is_named_within_five_seconds(
    home: Home, new_run: NewRun, number: signal.Signals
) -> None:
    run = started(home, new_run(seed=NEVER_END))
    assert run.process
    os.kill(run.process.pid, number)
    name = signal.Signals(number).name
    run = eventually(lambda: runs.read(home, run.id), lambda run: name in run.error, seconds=5)
    assert run.state == "failed"
    assert name in run.error


def test_a_kill_for_lack_of_memory_is_recognized(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([7, 8])
    monkeypatch.setattr(launch, "count_oom_kills", lambda: next(counts))
    start(home, run := new_run(seed=KILLED))
    run = wait_for_exit(home, run)
    assert run.cause == "out_of_memory"
    assert "main memory was full" in run.error


def test_the_counter_of_the_kernel_is_read() -> None:
    assert not Path("/proc/vmstat").exists() or isinstance(states.count_oom_kills(), int)


def test_a_dead_program_is_noticed_without_its_launcher(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=NEVER_END)
    subprocess.run([sys.executable, "-c", STARTER, home.path, run.id], cwd=ROOT, check=True)
    run = stepping(home, run)
    assert run.state == "running"
    assert run.process  # its launcher has ended
    os.kill(run.process.pid, signal.SIGKILL)
    assert "ended without finishing" in ended(home, run, 5).error


def test_a_full_disk_is_the_cause_that_the_program_wrote(home: Home, new_run: NewRun) -> None:
    start(home, run := new_run(seed=DISK_FULL))
    run = ended(home, run)
    assert (run.state, run.cause) == ("failed", "disk_full")


def test_a_run_without_disk_space_is_not_created(home: Home, new_run: NewRun) -> None:
    huge = {"components": [{"name": "adapters", "bytes": 2**60, "note": ""}]}
    with pytest.raises(SpecError, match="GiB is free"):
        runs.create(home, resolve({}), huge)
    assert list(home.runs.iterdir()) == []


def test_a_file_that_is_mixed_in_often_needs_space_as_often(
    home: Home, fake_program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = dataset_path("demo")
    free = FREE_BYTES_AFTER_RUN + 12 * more.stat().st_size  # two files are copied too
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    assert runs.create(home, resolve({"mix": f"{more} = 8"}), {})
    with pytest.raises(SpecError, match="the run needs about"):
        runs.create(home, resolve({"mix": f"{more} = 12"}), {})


def test_two_processes_that_start_at_once_start_one_run(home: Home, new_run: NewRun) -> None:
    rivals = [new_run(seed=NEVER_END) for _ in range(3)]
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, home.path, run.id], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        for run in rivals
    ]
    assert [starter.wait(30) for starter in starters] == [0, 0, 0]
    states_now = sorted(runs.read(home, run.id).state for run in rivals)
    assert states_now[:2] == ["queued", "queued"]
    assert states_now[2] in ("running", "starting")


def test_jobs_of_the_same_second_become_one_run_each(home: Home, new_run: NewRun) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [each.result() for each in [pool.submit(new_run) for _ in range(8)]]
    assert len({run.id for run in made}) == 8 == len(runs.listing.list_runs(home))
    assert all((run.folder / "data" / "manifest.json").exists() for run in made)


def test_twenty_starts_at_once_in_one_process_start_one_run(home: Home, new_run: NewRun) -> None:
    run = new_run(seed=NEVER_END)
    refused: list[SpecError] = []

    def press() -> None:
        try:
            queue.submit(home, run)
        except SpecError as error:
            refused.append(error)

    presses = [threading.Thread(target=press) for _ in range(20)]
    for thread in presses:
        thread.start()
    for thread in presses:
        thread.join()
    assert len(refused) == 19


def test_a_run_whose_launcher_died_fails_and_can_be_started(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    write_json(run.folder / "process.json", {"asked": time.time()})
    assert runs.read(home, run.id).state == "starting"
    monkeypatch.setattr(states, "SECONDS_TO_APPEAR", 0)
    assert "never started" in runs.read(home, run.id).error
    start(home, run)
    assert ended(home, run).state == "finished"


def test_a_program_that_cannot_be_started_fails_with_the_reason(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    run = queue.submit(home, new_run())
    assert run.state == "failed"
    assert "could not be started: No such file" in run.error


def test_a_deleted_run_can_still_be_stopped_and_killed(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=NEVER_END))
    launch.kill(run)
    ended(home, run)
    edits.delete(home, run.id)
    launch.request_stop(run)
    launch.kill(run)
    assert runs.listing.list_runs(home) == ()
    assert run.fingerprint()
