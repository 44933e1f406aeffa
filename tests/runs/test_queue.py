"""Queue: order, moves, cancelling, crashes."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from core import runs
from core.job import SpecError
from core.runs import Home, Run, edits, launch, listing, queue
from core.runs.home import Schedule, locked, read_schedule, write_schedule
from core.training.contract.files import write_json
from tests.builders.fake_runs import (
    CRASH_AT_STEP_3,
    NEVER_END,
    NewRun,
    advanced,
    ended,
    eventually,
    stepping,
)
from tests.builders.nvml import reading, show_cards
from tests.builders.paths import ROOT


@pytest.fixture
def busy(home: Home, new_run: NewRun) -> Run:
    """Return a run that keeps the device."""
    return stepping(home, queue.submit(home, new_run(seed=NEVER_END)))


def test_a_submitted_run_starts_if_the_device_is_free(home: Home, new_run: NewRun) -> None:
    run = queue.submit(home, new_run())
    assert run.state in ("starting", "running")
    assert run.process
    assert queue.waiting(home) == ()


def test_a_second_run_waits_and_starts_when_the_first_has_ended(
    home: Home, new_run: NewRun, busy: Run
) -> None:
    second = queue.submit(home, new_run())
    queue.advance(home)
    assert second.state == "queued"
    assert runs.read(home, second.id).state == "queued"
    launch.request_stop(busy)
    assert advanced(home, second, lambda run: run.step > 0).state in ("running", "finished")
    assert runs.read(home, busy.id).state == "stopped"


def test_runs_wait_in_order_and_can_change_places(home: Home, new_run: NewRun, busy: Run) -> None:
    first, second, third = (queue.submit(home, new_run()) for _ in range(3))
    assert [run.id for run in queue.move(home, third.id, "up")] == [first.id, third.id, second.id]
    assert [run.id for run in queue.move(home, first.id, "up")] == [first.id, third.id, second.id]
    assert [run.id for run in queue.move(home, first.id, "down")] == [third.id, first.id, second.id]
    with pytest.raises(SpecError, match="is not waiting"):
        queue.move(home, busy.id, "up")


def test_a_move_in_the_queue_changes_the_list(home: Home, new_run: NewRun) -> None:
    first, second = new_run(), new_run()
    write_schedule(home, Schedule((first.id, second.id)))
    runs.listing.list_runs(home)
    mark = listing.list_fingerprint(home)
    queue.move(home, second.id, "up")
    assert listing.list_fingerprint(home) != mark


def test_a_cancelled_run_is_stopped_without_having_started(
    home: Home, new_run: NewRun, busy: Run
) -> None:
    waiting = queue.submit(home, new_run())
    launch.request_stop(waiting)
    run = runs.read(home, waiting.id)
    assert run.state == "stopped"
    assert queue.waiting(home) == ()
    assert not (run.folder / "log.txt").exists()
    assert queue.submit(home, run).state == "queued"  # and may be asked for again


def test_a_resumed_run_that_is_cancelled_is_what_it_was(
    home: Home, new_run: NewRun, busy: Run
) -> None:
    failed = new_run()
    write_json(failed.folder / "status.json", {"state": "failed", "error": "Lost.", "step": 7})
    launch.request_stop(queue.submit(home, failed))
    run = runs.read(home, failed.id)
    assert (run.state, run.error, run.step) == ("failed", "Lost.", 7)


def test_submitting_twice_is_waiting_once(home: Home, new_run: NewRun, busy: Run) -> None:
    run = queue.submit(home, new_run())
    queue.submit(home, run)
    assert [each.id for each in queue.waiting(home)] == [run.id]


@pytest.mark.parametrize("state", ["finished", "running"])
def test_what_is_finished_or_under_way_is_not_queued(
    home: Home, new_run: NewRun, busy: Run, state: str
) -> None:
    run = busy
    if state == "finished":
        run = new_run()
        write_json(run.folder / "status.json", {"state": "finished"})
    with pytest.raises(SpecError, match=state):
        queue.submit(home, run)


def test_a_crashed_run_is_never_started_again_by_itself(home: Home, new_run: NewRun) -> None:
    run = ended(home, queue.submit(home, new_run(seed=CRASH_AT_STEP_3)))
    log = (run.folder / "process.json").read_text()
    for _ in range(3):
        queue.advance(home)
    assert runs.read(home, run.id).state == "failed"
    assert (run.folder / "process.json").read_text() == log


def test_a_run_that_cannot_be_started_fails_and_the_next_one_starts(
    home: Home, new_run: NewRun, busy: Run
) -> None:
    broken, sound = queue.submit(home, new_run()), queue.submit(home, new_run())
    (broken.folder / "log.txt").mkdir()
    launch.request_stop(busy)
    assert advanced(home, sound, lambda run: run.state != "queued").state != "queued"
    assert "could not be started" in runs.read(home, broken.id).error


def test_a_run_deleted_by_hand_leaves_the_queue(home: Home, new_run: NewRun, busy: Run) -> None:
    gone, sound = queue.submit(home, new_run()), queue.submit(home, new_run())
    gone.folder.rename(home.path / "elsewhere")
    assert [run.id for run in queue.waiting(home)] == [sound.id]
    launch.request_stop(busy)
    advanced(home, sound, lambda run: run.state != "queued")
    assert read_schedule(home).waiting == ()


def test_a_waiting_run_is_not_deleted(home: Home, new_run: NewRun, busy: Run) -> None:
    run = queue.submit(home, new_run())
    with pytest.raises(SpecError, match="queued"):
        edits.delete(home, run.id)


def test_an_app_killed_between_queue_and_start_starts_it_later_once(
    home: Home, new_run: NewRun
) -> None:
    run = new_run(seed=NEVER_END)
    write_schedule(home, Schedule((run.id,)))  # as a dead app has left it
    advance = "import sys; from core.runs import Home, queue; queue.advance(Home.find(sys.argv[1]))"
    apps = [
        subprocess.Popen([sys.executable, "-c", advance, home.path], cwd=ROOT) for _ in range(2)
    ]
    assert [app.wait(30) for app in apps] == [0, 0]
    run = stepping(home, run)
    assert run.state == "running"
    assert read_schedule(home).devices == {"0": run.id}


def test_an_app_killed_after_it_gave_the_device_away_blocks_no_run(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten, next_one = new_run(), new_run()
    os.utime(forgotten.folder / "job.json", (1, 1))
    write_schedule(home, Schedule((), {"0": forgotten.id}))
    assert queue.submit(home, next_one).state != "queued"
    assert runs.read(home, forgotten.id).state == "failed"


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"waiting": 7, "devices": []}'])
def test_a_damaged_queue_file_is_an_empty_queue(home: Home, new_run: NewRun, torn: str) -> None:
    (home.path / "queue.json").write_text(torn)
    queue.advance(home)
    assert queue.waiting(home) == ()
    assert queue.submit(home, new_run()).process


def test_a_run_started_by_hand_keeps_its_device(home: Home, new_run: NewRun, busy: Run) -> None:
    write_schedule(home, Schedule())
    second = queue.submit(home, new_run())
    queue.advance(home)
    assert second.state == "queued"
    assert read_schedule(home).devices == {"0": busy.id}


def test_each_gpu_has_a_run_of_its_own(
    home: Home, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_cards(monkeypatch, reading(0), reading(2))
    first, other, waiting = (
        queue.submit(home, new_run(seed=NEVER_END, device=device)) for device in (0, 1, 1)
    )
    assert (first.state == "queued", other.state == "queued", waiting.state) == (
        False,
        False,
        "queued",
    )
    assert launch.environment(*launch.devices_of(other))["CUDA_VISIBLE_DEVICES"] == "2"
    with pytest.raises(SpecError, match=r"no GPU 2; choose 0 \(RTX 4090\), 1 \(RTX 4090\)"):
        queue.submit(home, new_run(device=2))


def test_a_job_without_a_gpu_takes_the_first_visible_one(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_cards(monkeypatch, reading(3))
    assert launch.devices_of(new_run()) == ("3",)


def test_a_gpu_that_nvml_does_not_list_stays_as_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    show_cards(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    assert launch.environment()["CUDA_VISIBLE_DEVICES"] == "MIG-1234"


def test_a_gpu_that_is_named_twice_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    show_cards(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,1")
    assert launch.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_the_queue_advances_while_the_app_is_open(home: Home, new_run: NewRun, busy: Run) -> None:
    second = queue.submit(home, new_run())
    assert all(thread.daemon for thread in queue.keep_advancing(home))
    launch.request_stop(busy)
    assert eventually(lambda: runs.read(home, second.id), lambda run: run.step > 0).step > 0


def test_a_schedule_is_replaced_by_a_new_one(home: Home) -> None:
    with locked(home):
        write_schedule(home, replace(Schedule(("a",), {"0": "b"}), waiting=("c", "a")))
    assert read_schedule(home) == Schedule(("c", "a"), {"0": "b"})
