"""Output and exit codes of `python app.py runs ...`, and of a `train` that has to wait."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import app
from core import runs
from core.runs import Home, Run, launch, queue
from core.runs.files import read_json
from core.training.contract.files import write_json
from tests.builders.checkpoints import add_checkpoint
from tests.builders.fake_runs import (
    APP,
    CRASH_AT_STEP_3,
    NEVER_END,
    NewRun,
    ended,
    stepping,
    write_metrics,
)
from tests.builders.nvml import reading, show_cards
from tests.builders.paths import ROOT
from ui.terminal.follow import new_rows
from ui.terminal.runs import ACTIONS
from ui.terminal.usage import RUN_ACTIONS, call_of

Printed = pytest.CaptureFixture[str]
Do = Callable[..., int]


@pytest.fixture
def do(home: Home) -> Do:
    """Return a function that calls `runs ACTION WORD ...` on the test's home."""

    def call(action: str, *words: str, json: bool = False) -> int:
        flags = ["--json"] if json else []
        return app.main(["runs", action, *words, "--home", str(home.path), *flags])

    return call


@pytest.fixture
def finished(new_run: NewRun) -> Run:
    run = new_run()
    write_json(run.folder / "status.json", {"state": "finished", "step": 20, "max_steps": 20})
    return runs.read(run.home, run.id)


def test_the_queue_is_shown_and_reordered(
    do: Do, capsys: Printed, home: Home, new_run: NewRun
) -> None:
    assert do("queue") == 0
    assert "No run is waiting." in capsys.readouterr().out
    queue.submit(home, new_run(seed=NEVER_END))
    first, second = (queue.submit(home, new_run()) for _ in range(2))
    assert do("move", second.id, "up", json=True) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [second.id, first.id]
    assert do("stop", second.id) == 0
    assert "Stopped" in capsys.readouterr().out
    assert do("queue") == 0
    assert first.id in capsys.readouterr().out


def test_a_run_is_resumed_on_two_devices(do: Do, capsys: Printed, new_run: NewRun) -> None:
    run = new_run(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    write_json(run.folder / "status.json", {"state": "stopped"})
    assert do("resume", run.id, "--num-devices", "2") == 0
    said = "An optimizer step has 16 rows on 2 devices: 8 at once on each."
    assert said in " ".join(capsys.readouterr().out.split())
    assert runs.read(run.home, run.id).job.num_devices == 2


def test_too_few_cards_leave_a_run_as_it_is(
    do: Do, capsys: Printed, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    write_json(run.folder / "status.json", {"state": "stopped"})
    show_cards(monkeypatch, reading(0), reading(1))
    assert do("resume", run.id, "--num-devices", "4") == 2
    assert "this machine has 2 GPUs like RTX 4090, not 4" in capsys.readouterr().err
    assert runs.read(run.home, run.id).job == run.job


def test_a_waiting_run_stops_without_a_step(
    do: Do, capsys: Printed, home: Home, new_run: NewRun
) -> None:
    queue.submit(home, new_run(seed=NEVER_END))
    waiting = queue.submit(home, new_run())
    assert do("stop", waiting.id) == 0
    printed = capsys.readouterr().out
    assert "Taken out of the queue." in printed
    assert "checkpoint" not in printed


def test_the_list_names_a_run_that_cannot_be_read(
    do: Do, capsys: Printed, home: Home, new_run: NewRun
) -> None:
    run = new_run()
    job = read_json(run.folder / "job.json")
    write_json(run.folder / "job.json", job | {"of_another_version": 1})
    assert do("list") == 0
    printed = capsys.readouterr()
    assert f"{run.id} cannot be read: it is of a newer version" in printed.err
    assert "of_another_version" in printed.err
    assert "No runs yet" not in printed.out


def test_a_deleted_run_comes_back(do: Do, capsys: Printed, home: Home, finished: Run) -> None:
    assert do("delete", finished.id) == 0
    assert f"runs restore {finished.id}" in capsys.readouterr().out
    assert do("restore", finished.id) == 0
    assert runs.read(home, finished.id).state == "finished"
    do("delete", finished.id)
    assert do("empty-trash") == 0
    assert "Freed" in capsys.readouterr().out
    assert do("restore", finished.id) == 2


def test_title_notes_and_tags_are_written_and_searched(
    do: Do, capsys: Printed, finished: Run, new_run: NewRun
) -> None:
    other = new_run()
    for action, words in (("title", "The one"), ("note", "for the paper"), ("tag", "good")):
        assert do(action, finished.id, *words.split()) == 0
    assert "The one" in (shown := capsys.readouterr().out)
    assert "for the paper" in shown
    assert "#good" in shown
    assert do("list", "PAPER", "good", json=True) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [finished.id]
    assert do("list", "nowhere") == 0
    assert other.id not in capsys.readouterr().out


def test_runs_are_compared(do: Do, capsys: Printed, finished: Run, new_run: NewRun) -> None:
    assert do("compare", finished.id, new_run(lora_r=4).id, json=True) == 0
    found = {each["name"]: each["values"] for each in json.loads(capsys.readouterr().out)}
    assert found["lora_r"] == [16, 4]
    assert found["state"] == ["finished", "starting"]
    assert do("compare", finished.id, finished.id) == 0
    assert "peak_bytes" in capsys.readouterr().out


def test_a_bundle_is_written(do: Do, finished: Run, tmp_path: Path) -> None:
    assert do("bundle", finished.id, str(tmp_path / "run.zip")) == 0
    assert "RUN.md" in zipfile.ZipFile(tmp_path / "run.zip").namelist()


def test_a_failed_run_is_shown_with_advice(
    do: Do, capsys: Printed, home: Home, new_run: NewRun
) -> None:
    run = ended(home, queue.submit(home, new_run(seed=CRASH_AT_STEP_3)))
    assert do("show", run.id) == 0
    assert "→ " in (shown := capsys.readouterr().out)
    assert "--" in shown
    assert do("show", run.id, json=True) == 0
    assert all(each["change"] for each in json.loads(capsys.readouterr().out)["remedies"])


def test_a_resumed_run_prints_no_earlier_step_again(
    do: Do, capsys: Printed, new_run: NewRun
) -> None:
    run = new_run()
    write_json(run.folder / "status.json", {"state": "stopped", "step": 90, "max_steps": 100})
    write_metrics(run.folder, range(81, 91))
    assert do("resume", run.id) == 0
    printed = capsys.readouterr().out
    assert "step 20/20" in printed
    assert "step 81" not in printed


def test_rows_in_the_place_of_dropped_ones_are_new() -> None:
    before = tuple({"step": step, "time": step * 1.0} for step in range(1, 11))
    again = {"step": 6, "time": 9.5, "resumed_from": 5}
    assert new_rows((*before[:5], again), before) == (again,)


def test_dropped_rows_are_not_new() -> None:
    before = tuple({"step": step, "time": step * 1.0} for step in range(1, 11))
    assert new_rows(before[:5], before) == ()


def test_the_list_keeps_the_steps_of_a_run_that_starts_again(
    do: Do, capsys: Printed, new_run: NewRun
) -> None:
    add_checkpoint(new_run().folder, 40, max_steps=100)
    assert do("list", json=True) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["step"], listed["max_steps"]) == (40, 100)


def test_a_run_without_known_steps_has_no_zeros_in_the_list(
    do: Do, capsys: Printed, new_run: NewRun
) -> None:
    new_run()
    assert do("list") == 0
    assert "0/0" not in capsys.readouterr().out


@pytest.fixture
def titled(do: Do, capsys: Printed, new_run: NewRun) -> Run:
    """Return a failed run that has a title."""
    run = new_run()
    write_json(run.folder / "status.json", {"state": "failed", "error": "The disk is full."})
    assert do("title", run.id, "The one") == 0
    capsys.readouterr()
    return run


def test_the_list_has_title_and_reason_of_a_failed_run(
    do: Do, capsys: Printed, titled: Run
) -> None:
    assert do("list") == 0
    assert "The one · The disk is full." in " ".join(capsys.readouterr().out.split())


def test_the_heading_of_a_titled_run_has_its_id(do: Do, capsys: Printed, titled: Run) -> None:
    assert do("show", titled.id) == 0
    assert f"The one ({titled.id}): The disk is full." in capsys.readouterr().out


@pytest.mark.parametrize("action", [name for name, action in RUN_ACTIONS.items() if action.words])
def test_a_missing_word_is_one_line_and_exit_2(do: Do, capsys: Printed, action: str) -> None:
    assert do(action) == 2
    usage = f"`python app.py runs {call_of(action)}`"
    assert capsys.readouterr().err == f"ID: is missing; {usage}; `runs list` has the IDs\n"


def test_every_action_is_explained() -> None:
    assert ACTIONS.keys() == RUN_ACTIONS.keys()


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("show", ("ID", "more")),
        ("move", ("ID", "left")),
        ("bundle", ("ID", "/tmp/x.tar")),
        ("show", ("../x",)),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(
    do: Do, capsys: Printed, finished: Run, action: str, words: tuple[str, ...]
):
    assert do(action, *(finished.id if word == "ID" else word for word in words)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_training_waits_for_its_turn_and_ctrl_c_cancels_it(home: Home, new_run: NewRun) -> None:
    queue.submit(home, new_run(seed=NEVER_END))
    command = [sys.executable, "-c", APP, "train", "--demo", "--home", str(home.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if line.startswith("Waiting"))
        process.send_signal(2)
        assert process.wait(30) == 130
    assert queue.waiting(home) == ()
    assert [run.state for run in runs.listing.list_runs(home)] == [
        "stopped",
        "running",
    ]


def test_a_waiting_training_starts_when_the_other_has_ended(
    do: Do, capsys: Printed, home: Home, new_run: NewRun
) -> None:
    first = stepping(home, queue.submit(home, new_run(seed=NEVER_END)))
    second = queue.submit(home, new_run())
    launch.request_stop(first)
    assert do("resume", second.id) == 0
    assert "step 20/20" in capsys.readouterr().out
