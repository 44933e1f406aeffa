"""Damaged files, links and pipes in a run's folder."""

import json
import os
from pathlib import Path

import pytest

from core import runs
from core.device import identify, this_boot
from core.runs import Home, queue
from core.runs.home import Schedule, write_schedule
from core.runs.results.failure_advice import advice_for, stall_warning
from core.training.contract.files import write_json
from core.training.contract.process_id import ProcessId
from tests.builders.fake_runs import (
    NOT_A_NUMBER,
    TORN,
    NewRun,
    ended,
    start,
)

DAMAGED_FIELDS = {
    "status.json": "step max_steps phase started updated seconds_per_step last_step_time device "
    "baseline_bytes peak_allocated_bytes phase_peak_bytes device_capacity_bytes error cause pid",
    "process.json": "asked pid pid_start_time",
    "stop": "monotonic",
    "about.json": "title tags notes",
}
"""File of a run -> fields in it."""


def test_torn_lines_and_nonfinite_numbers_leave_gaps(home: Home, new_run: NewRun) -> None:
    for seed, num_gaps in ((TORN, 0), (NOT_A_NUMBER, 2)):
        start(home, run := new_run(seed=seed))
        run = ended(home, run)
        losses = run.curves()["loss"]
        assert run.state == "finished"
        assert run.loss == 0.2
        assert sum(losses.values != losses.values) == num_gaps
        assert len(losses.values) == 20 + num_gaps


def test_a_torn_status_is_ignored(home: Home, new_run: NewRun) -> None:
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


def test_a_link_to_itself_is_no_file(new_run: NewRun) -> None:
    run = new_run()
    path = run.folder / "metrics.jsonl"
    path.symlink_to(path)
    assert run.metrics() == ()
    assert run.fingerprint()


@pytest.mark.parametrize(
    "value", ["many", [3], {"a": 1}, 10**400, float("nan"), True], ids=lambda value: str(value)[:9]
)
@pytest.mark.parametrize(("state", "seen"), [("failed", "failed"), ("running", "starting")])
def test_values_of_a_wrong_type_are_ignored(
    home: Home, new_run: NewRun, state: str, seen: str, value: object
) -> None:
    run = new_run()
    for file, words in DAMAGED_FIELDS.items():
        write_json(run.folder / file, {"state": state} | dict.fromkeys(words.split(), value))
    (run.folder / "metrics.jsonl").write_text(
        json.dumps({"step": 1} | dict.fromkeys(("loss", "time"), value)) + "\n"
    )
    write_schedule(home, Schedule((), {"0": run.id}))
    queue.advance(home)
    assert [each.to_json()["state"] for each in runs.listing.list_runs(home)] == [seen]
    assert advice_for(run) == ()
    assert stall_warning(runs.read(home, run.id)) is None


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "log.txt", "status.json", "samples.jsonl", "about.json"]
)
def test_a_link_among_the_files_of_a_run_is_not_followed(
    home: Home, new_run: NewRun, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"title": "canary", "state": "finished", "loss": 1, "step": 1}\n')
    run = new_run()
    (run.folder / name).symlink_to(secret)
    seen = runs.read(home, run.id)
    told = (
        seen,
        seen.metrics(),
        seen.samples(),
        seen.log_tail(),
        seen.loss,
    )
    assert "canary" not in repr(told)
    assert seen.state == "starting"
    assert seen.loss is None
    assert not seen.curves()


def test_a_pipe_in_place_of_a_file_does_not_block(home: Home, new_run: NewRun) -> None:
    run = new_run()
    os.mkfifo(run.folder / "metrics.jsonl")
    assert runs.read(home, run.id).loss is None
    assert not run.curves()


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_a_process_of_the_system_is_never_a_run(new_run: NewRun, pid: int) -> None:
    run = new_run()
    found = identify(1)
    fields = {
        "pid": pid,
        "pid_start_time": found.start_time if found else 0,
        "boot_id": this_boot(),
    }
    write_json(run.folder / "process.json", fields)
    assert runs.read(run.home, run.id).process is None


def test_an_exit_of_an_earlier_attempt_is_ignored(new_run: NewRun) -> None:
    run = new_run()
    mine = identify(os.getpid())
    assert mine
    gone = ProcessId(mine.pid, mine.start_time - 50, mine.boot_id).to_json()
    write_json(run.folder / "process.json", gone)
    write_json(run.folder / "exit.json", {**gone, "pid_start_time": 1.0, "code": -9})
    assert "SIGKILL" not in runs.read(run.home, run.id).error
