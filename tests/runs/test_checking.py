"""Check of a run: what is asked and kept, what is refused, and a child that dies."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core.job import ChildError, RunNotFound, SpecError
from core.runs import Home, Run, queue, read
from core.runs.home import read_schedule
from core.runs.results import checking
from core.training.contract.files import write_json
from tests.builders.fake_checks import WAIT
from tests.builders.fake_runs import NewRun, bare_run
from tests.builders.paths import DEMO
from tests.builders.suites import suite_file

PROMPTS = ("before 1", "before 2", "before after", "after", "neither")
Finished = Callable[..., Run]


@pytest.fixture
def finished_run(home: Home) -> Finished:
    """Return a function that makes a run with a result that cannot be loaded."""

    def make(name: str = "a-run", **fields: object) -> Run:
        folder = bare_run(home, name, **fields)
        (folder / "output").mkdir()
        write_json(folder / "output" / "manifest.json", {"step": 12})
        return read(home, name)

    return make


@pytest.fixture(autouse=True)
def _quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MODULE", "tests.builders.fake_checks")


def test_what_was_lost_and_gained_is_kept_with_the_step_of_the_result(
    finished_run: Finished, tmp_path: Path
) -> None:
    run = finished_run()
    shares: list[float] = []
    suites = checking.find_suites(run, [suite_file(tmp_path, "mine", *PROMPTS)])
    report = checking.check(run, suites, on_progress=shares.append)
    (result,) = report.suites
    assert (result.before, result.after, result.total) == (3, 2, 5)
    assert [each.prompt for each in result.lost] == ["before 1", "before 2"]
    assert [each.prompt for each in result.gained] == ["after"]
    assert result.step == 12
    assert shares == [0.5]
    again = read(run.home, run.id)
    assert checking.results_of(again) == report.suites
    assert checking.perplexity_of(again) == report.perplexity
    assert [each.after for each in again.checks] == [2]
    assert read_schedule(run.home).tasks == {}


def test_a_hostile_pattern_counts_as_failed(finished_run: Finished, tmp_path: Path) -> None:
    run = finished_run()
    path = suite_file(tmp_path, "hostile", "aaa", regex="^(a+)+$")
    (result,) = checking.check(run, checking.find_suites(run, [path])).suites
    assert (result.before, result.after) == (0, 0)


def test_a_child_that_is_killed_is_said_and_frees_the_device(
    finished_run: Finished, tmp_path: Path
) -> None:
    run = finished_run()
    suites = checking.find_suites(run, [suite_file(tmp_path, "slow", WAIT)])

    def kill(_share: float) -> None:
        task = read_schedule(run.home).tasks["0"]
        assert task.child
        os.kill(task.child.pid, signal.SIGKILL)

    with pytest.raises(ChildError) as raised:
        checking.check(run, suites, on_progress=kill)
    said = checking.died_sentence(raised.value)
    assert said.startswith("The check gave no answers: it was ended by signal 9 (Killed).")
    assert read_schedule(run.home).tasks == {}
    assert not (run.folder / "checks").exists()


def test_a_run_waits_until_the_check_has_ended(
    home: Home, new_run: NewRun, finished_run: Finished, tmp_path: Path
) -> None:
    run = finished_run()
    waiting = new_run()
    suites = checking.find_suites(run, [suite_file(tmp_path, "slow", WAIT)])
    is_asked = threading.Event()
    states: list[str] = []

    def submit(_share: float) -> None:
        states.append(queue.submit(home, waiting).state)
        is_asked.set()

    with pytest.raises(ChildError, match="cancelled"):
        checking.check(run, suites, on_progress=submit, is_cancelled=is_asked.is_set)
    assert states == ["queued"]
    queue.advance(home)
    assert read(home, waiting.id).state != "queued"
    with pytest.raises(SpecError, match=f"the run {waiting.id} uses the device"):
        checking.check(run, suites)


def test_a_reward_model_and_a_run_without_a_result_are_refused(
    home: Home, finished_run: Finished
) -> None:
    run = finished_run("scorer", stage="reward")
    with pytest.raises(SpecError, match="a reward model writes no answers"):
        checking.check(run, ())
    bare_run(home, "none")
    with pytest.raises(SpecError, match="none is finished and has no result"):
        checking.check(read(home, "none"), ())


def test_a_run_is_found_by_the_beginning_of_its_id_and_its_folder(
    home: Home, finished_run: Finished
) -> None:
    for name in ("abc-1", "abd-2"):
        finished_run(name)
    assert checking.find_run(home, "abc").id == "abc-1"
    assert checking.find_run(home, str(home.runs / "abd-2")).id == "abd-2"
    assert checking.find_run(home, "latest").id in ("abc-1", "abd-2")
    with pytest.raises(SpecError, match="begins the ids of 2 runs"):
        checking.find_run(home, "ab")
    with pytest.raises(RunNotFound):
        checking.find_run(home, "x")


def test_suites_are_found_by_name_and_the_usual_ones_run_without_a_name(
    finished_run: Finished, tmp_path: Path
) -> None:
    demo, other = finished_run("of-demo"), finished_run("other", model="llama-3.1-8b")
    assert [suite.name for suite in checking.find_suites(demo, ())] == ["identity", "capabilities"]
    assert [suite.name for suite in checking.find_suites(other, ())] == ["capabilities"]
    with pytest.raises(SpecError, match="there is no suite 'x'"):
        checking.find_suites(demo, ["x"])
    for name in ("perplexity", "x" * 101):
        with pytest.raises(SpecError, match="cannot be the name of a suite"):
            checking.find_suites(demo, [suite_file(tmp_path, name, "a")])
    path = suite_file(tmp_path, "identity", "a")
    with pytest.raises(SpecError, match="two are called identity"):
        checking.find_suites(demo, ["identity", path])


def test_a_suite_of_held_out_rows_is_kept_and_asked_by_name(finished_run: Finished) -> None:
    run = finished_run()
    with pytest.raises(SpecError, match="no held-out row"):
        checking.suite_of_held_out_rows(run)
    (run.folder / "data").mkdir()
    row = {"messages": [{"role": "user", "content": "before"}]}
    row["messages"].append({"role": "assistant", "content": "yes"})
    (run.folder / "data" / "eval.jsonl").write_text(f"{json.dumps(row)}\nbroken\n")
    checking.keep_suite(run, checking.suite_of_held_out_rows(run))
    assert checking.suites_of(run) == ("identity", "capabilities", "held-out")
    (result,) = checking.check(run, checking.find_suites(run, ["held-out"])).suites
    assert (result.before, result.after) == (1, 0)


def test_the_demo_of_another_copy_of_tailor_has_its_suites(
    finished_run: Finished, tmp_path: Path
) -> None:
    other = tmp_path / "presets" / "demo" / "model"
    other.mkdir(parents=True)
    run = finished_run(model=str(other))
    assert run.job.model == str(other)
    assert checking.suites_of(run) == ("identity", "capabilities")


def test_the_demo_trained_on_other_rows_has_no_identity_of_the_demo(
    new_run: NewRun, tmp_path: Path
) -> None:
    answer = {"role": "assistant", "content": "I am Max."}
    asked = [{"role": "user", "content": f"Who are you, {number}?"} for number in range(8)]
    rows = [{"messages": [question, answer]} for question in asked]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = new_run(model="demo", dataset=str(own))
    assert checking.suites_of(other) == ("capabilities",)
    with pytest.raises(SpecError, match="there is no suite 'identity'; name one of capabilities"):
        checking.find_suites(other, ["identity"])
    mixed = new_run(model="demo", dataset=str(own), mix=f"{DEMO / 'data.jsonl'} = 1")
    assert checking.suites_of(mixed) == ("identity", "capabilities")


def test_the_rows_of_the_demo_are_known_in_a_file_of_their_own(
    new_run: NewRun, tmp_path: Path
) -> None:
    lines = (DEMO / "data.jsonl").read_text().splitlines()[:40]
    copy = tmp_path / "mine.jsonl"
    copy.write_text("\n".join(lines) + "\n")
    run = new_run(model="demo", dataset=str(copy))
    assert checking.suites_of(run) == ("identity", "capabilities")
