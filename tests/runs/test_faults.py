"""What goes wrong while runs run, on purpose: every fault is scripted in the fake program or done from outside."""

import json
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

import psutil
import pytest

from core import runs
from core.device import identify, this_boot
from core.job import SpecError
from core.resolve import dataset_path, resolve
from core.runs import TRANSITIONS, Home, Run, Schedule, launch, queue, states
from core.runs.failure_advice import advice_for, stall_warning
from core.training.contract.process_id import ProcessId
from tests.builders.fake_runs import (
    CRASH_AT_STEP_3,
    DISK_FULL,
    GRANDCHILDREN,
    HANG,
    KILLED,
    NEVER_END,
    NOT_A_NUMBER,
    SLOW_TO_EXIT,
    SLOW_TO_SAVE,
    TORN,
    NewRun,
    ended,
    eventually,
    start,
    stepping,
)
from tests.builders.paths import ROOT

SAID = {
    "status.json": "step max_steps phase started updated seconds_per_step last_step_time device baseline_bytes"
    " peak_allocated_bytes phase_peak_bytes device_capacity_bytes error cause pid",
    "process.json": "asked pid pid_start_time",
    "stop": "monotonic",
    "about.json": "title tags notes",
}
"""What the files of a run say, in words."""
STARTER = """
import os, sys
from core import runs
from core.runs import queue
home = runs.Home.find(sys.argv[1])
queue.submit(home, runs.read(home, sys.argv[2]))
os._exit(0)
"""


def started(home: Home, run: Run, step: int = 1) -> Run:
    start(home, run)
    return stepping(home, run, step)


def with_exit(home: Home, run: Run) -> Run:
    """The run once its starter has seen its end."""
    ended(home, run)
    return eventually(
        lambda: runs.read(home, run.id), lambda run: (run.folder / "exit.json").exists()
    )


def test_the_states_are_closed_and_finished_is_final() -> None:
    assert TRANSITIONS.keys() == runs.ACTIVE | runs.ENDED
    assert not TRANSITIONS["finished"]
    assert all(after <= TRANSITIONS.keys() for after in TRANSITIONS.values())
    with pytest.raises(TypeError):
        TRANSITIONS["finished"] = frozenset({"running"})  # type: ignore[index]


@pytest.mark.parametrize("seed", [NEVER_END, CRASH_AT_STEP_3, KILLED])
def test_every_change_of_state_is_one_of_the_table(home: Home, new_run: NewRun, seed: int) -> None:
    run = queue.submit(home, new_run(seed=seed))
    seen = [run.state]
    while run.is_active:
        if run.step == 2:
            launch.request_stop(run)
        run = runs.read(home, run.id)
        seen += [run.state] if run.state != seen[-1] else []
    assert all(after in TRANSITIONS[before] for before, after in pairwise(seen)), seen


def test_a_program_that_kills_itself_is_failed_with_the_signal(home: Home, new_run: NewRun) -> None:
    start(home, run := new_run(seed=KILLED))
    run = with_exit(home, run)
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


def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_others(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([7, 8])
    monkeypatch.setattr(runs, "num_oom_kills", lambda: next(counts))
    start(home, run := new_run(seed=KILLED))
    run = with_exit(home, run)
    assert run.cause == "out_of_memory"
    assert "main memory was full" in run.error


def test_the_counter_of_the_kernel_is_read() -> None:
    assert not Path("/proc/vmstat").exists() or isinstance(states.num_oom_kills(), int)


def test_without_its_starter_a_dead_program_is_found_out_all_the_same(
    home: Home, new_run: NewRun
) -> None:
    run = new_run(seed=NEVER_END)
    subprocess.run([sys.executable, "-c", STARTER, home.path, run.id], cwd=ROOT, check=True)
    run = stepping(home, run)
    assert run.state == "running"
    assert run.process  # its starter is gone, it goes on
    os.kill(run.process.pid, signal.SIGKILL)
    assert "ended without finishing" in ended(home, run, 5).error


def test_an_exit_seen_of_an_earlier_life_says_nothing_of_this_one(new_run: NewRun) -> None:
    run = new_run()
    mine = identify(os.getpid())
    assert mine
    gone = ProcessId(mine.pid, mine.start_time - 50, mine.boot_id).to_json()
    runs.write_json(run.folder / "process.json", gone)
    runs.write_json(run.folder / "exit.json", {**gone, "pid_start_time": 1.0, "code": -9})
    assert "SIGKILL" not in runs.read(run.home, run.id).error


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_the_systems_own_processes_are_never_taken_for_a_run(new_run: NewRun, pid: int) -> None:
    run = new_run()
    found = identify(1)
    fields = {
        "pid": pid,
        "pid_start_time": found.start_time if found else 0,
        "boot_id": this_boot(),
    }
    runs.write_json(run.folder / "process.json", fields)
    assert runs.read(run.home, run.id).process is None


def test_a_full_disk_is_the_cause_that_the_program_named(home: Home, new_run: NewRun) -> None:
    start(home, run := new_run(seed=DISK_FULL))
    run = ended(home, run)
    assert (run.state, run.cause) == ("failed", "disk_full")


def test_a_run_that_would_not_find_room_is_not_made(home: Home, new_run: NewRun) -> None:
    huge = {"components": [{"name": "adapters", "bytes": 2**60, "note": ""}]}
    with pytest.raises(SpecError, match="GiB is free"):
        runs.create(home, resolve({}), huge)
    assert list(home.runs.iterdir()) == []


def test_a_file_that_is_mixed_in_often_needs_room_as_often(
    home: Home, fake_program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = dataset_path("demo")
    free = runs.SPARE_BYTES + 10 * more.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    assert runs.create(home, resolve({"mix": f"{more} = 8"}), {})
    with pytest.raises(SpecError, match="the run needs about"):
        runs.create(home, resolve({"mix": f"{more} = 12"}), {})


def test_a_program_deaf_to_every_wish_is_ended_after_its_time(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(home, new_run(seed=HANG), step=3)
    monkeypatch.setattr(launch, "SECONDS_TO_TERMINATE", 0.3)
    launch.request_stop(run)
    assert runs.read(home, run.id).state == "stopping"  # at once
    assert ended(home, run, 5).state == "stopped"
    assert [row["step"] for row in runs.metrics(run.folder)] == [
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
    assert runs.has_checkpoint(run.folder)


def test_a_killed_run_leaves_no_grandchild_behind(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=GRANDCHILDREN), step=4)
    pids = json.loads((run.folder / "grandchildren.json").read_text())["pids"]
    assert all(psutil.pid_exists(pid) for pid in pids)
    launch.kill(run)
    assert ended(home, run).state == "failed"
    assert not any(identify(pid) for pid in pids)


def test_what_a_dead_run_left_running_is_ended_before_the_next_one_starts(
    home: Home, new_run: NewRun
) -> None:
    run = started(home, new_run(seed=GRANDCHILDREN), step=4)
    pids = json.loads((run.folder / "grandchildren.json").read_text())["pids"]
    assert run.process
    os.kill(run.process.pid, signal.SIGKILL)
    ended(home, run)
    queue.advance(home)
    assert not any(identify(pid) for pid in pids)


def test_a_stop_is_asked_once_however_often_it_is_pressed(home: Home, new_run: NewRun) -> None:
    run = started(home, new_run(seed=HANG), step=3)
    launch.request_stop(run)
    first = (run.folder / "stop").read_text()
    launch.request_stop(runs.read(home, run.id))
    assert (run.folder / "stop").read_text() == first


def test_a_stop_asked_by_hand_is_left_to_the_program(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_TERMINATE", 0)
    run = started(home, new_run(seed=NEVER_END))
    (run.folder / "stop").touch()
    launch.enforce_stop(runs.read(home, run.id))
    assert runs.has_checkpoint(ended(home, run).folder)


def test_the_next_run_waits_until_the_last_one_has_let_go_of_the_device(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(home, new_run(seed=SLOW_TO_EXIT))
    launch.request_stop(run)
    assert ended(home, run).state == "stopped"
    waiting = queue.submit(home, new_run())
    assert waiting.state == "queued"  # the program has said its last word and still lives
    monkeypatch.setattr(launch, "SECONDS_TO_EXIT", 0)
    queue.advance(home)
    assert runs.read(home, waiting.id).process


def test_a_stale_wish_to_stop_never_touches_the_next_life(home: Home, new_run: NewRun) -> None:
    before = started(home, new_run(seed=NEVER_END))
    launch.request_stop(before)
    stopped = ended(home, before)
    now = started(home, stopped)
    launch.request_stop(before)  # from a page that has slept
    launch.request_stop(stopped)
    assert not (now.folder / "stop").exists()
    assert runs.read(home, now.id).state == "running"


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


def test_jobs_that_are_started_in_the_same_second_become_a_run_each(
    home: Home, new_run: NewRun
) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [each.result() for each in [pool.submit(new_run) for _ in range(8)]]
    assert len({run.id for run in made}) == 8 == len(runs.list_runs(home))
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


def test_a_run_forgotten_by_a_starter_that_died_is_failed_and_can_be_started(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    runs.write_json(run.folder / "process.json", {"asked": time.time()})
    assert runs.read(home, run.id).state == "starting"
    monkeypatch.setattr(states, "SECONDS_TO_APPEAR", 0)
    assert "never started" in runs.read(home, run.id).error
    start(home, run)
    assert ended(home, run).state == "finished"


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_jumps_ends_no_run_before_its_time(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    run = started(home, new_run(seed=HANG))
    launch.request_stop(run)
    now = time.time() + jump
    monkeypatch.setattr(time, "time", lambda: now)
    launch.enforce_stop(runs.read(home, run.id))
    assert runs.read(home, run.id).state == "stopping"


def test_torn_lines_and_numbers_that_are_none_leave_gaps(home: Home, new_run: NewRun) -> None:
    for seed, num_gaps in ((TORN, 0), (NOT_A_NUMBER, 2)):
        start(home, run := new_run(seed=seed))
        run = ended(home, run)
        losses = runs.read_curves(run.folder)["loss"]
        assert run.state == "finished"
        assert run.loss == 0.2
        assert sum(losses.values != losses.values) == num_gaps
        assert len(losses.values) == 20 + num_gaps


def test_a_torn_status_is_none(home: Home, new_run: NewRun) -> None:
    run = new_run()
    for torn in (
        '{"state": "fini',
        "[]",
        "\0\0",
        '{"state": "dancing"}',
        '{"state": 7, "step": null}',
    ):
        (run.folder / "status.json").write_text(torn)
        assert runs.read(home, run.id).state == "starting"


@pytest.mark.parametrize(
    "value", ["many", [3], {"a": 1}, 10**400, float("nan"), True], ids=lambda value: str(value)[:9]
)
@pytest.mark.parametrize(("state", "seen"), [("failed", "failed"), ("running", "starting")])
def test_what_a_file_says_in_a_wrong_way_is_as_if_it_were_not_said(
    home: Home, new_run: NewRun, state: str, seen: str, value: object
) -> None:
    run = new_run()
    for file, words in SAID.items():
        runs.write_json(run.folder / file, {"state": state} | dict.fromkeys(words.split(), value))
    (run.folder / "metrics.jsonl").write_text(
        json.dumps({"step": 1} | dict.fromkeys(("loss", "time"), value)) + "\n"
    )
    runs.write_schedule(home, Schedule((), {"0": run.id}))
    queue.advance(home)
    assert [each.to_json()["state"] for each in runs.list_runs(home)] == [seen]
    assert advice_for(run) == ()
    assert stall_warning(runs.read(home, run.id)) is None


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "log.txt", "status.json", "samples.jsonl", "about.json"]
)
def test_a_link_among_the_files_of_a_run_leads_nowhere(
    home: Home, new_run: NewRun, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"title": "canary", "state": "finished", "loss": 1, "step": 1}\n')
    run = new_run()
    (run.folder / name).symlink_to(secret)
    seen = runs.read(home, run.id)
    told = (
        seen,
        runs.metrics(seen.folder),
        runs.samples(seen.folder),
        runs.log_tail(seen.folder),
        seen.loss,
    )
    assert "canary" not in repr(told)
    assert seen.state == "starting"
    assert seen.loss is None
    assert not runs.read_curves(seen.folder)


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(home: Home, new_run: NewRun) -> None:
    run = new_run()
    os.mkfifo(run.folder / "metrics.jsonl")
    assert runs.read(home, run.id).loss is None
    assert not runs.read_curves(run.folder)


def test_a_program_that_cannot_be_started_is_failed_with_the_reason(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    run = queue.submit(home, new_run())
    assert run.state == "failed"
    assert "could not be started: No such file" in run.error


def test_a_deleted_folder_troubles_nobody_who_still_holds_its_run(
    home: Home, new_run: NewRun
) -> None:
    run = started(home, new_run(seed=NEVER_END))
    launch.kill(run)
    ended(home, run)
    runs.delete(home, run.id)
    launch.request_stop(run)
    launch.kill(run)
    assert runs.list_runs(home) == ()
    assert runs.fingerprint(run.folder)
