"""Checks of a comparison: begun when all runs have ended, each once, stopped and tried again."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from core.after_training.compare import (
    Comparison,
    Study,
    Trial,
    checking,
    conduct,
    keeper,
    plan_variants,
    record,
)
from core.after_training.compare.report import cautions, findings, summary_of
from core.job import Problem, SpecError
from core.job.places import only_in
from core.runs import Home
from core.runs.checks import find_suite
from core.runs.edits import delete, restore
from core.runs.home import read_schedule
from core.runs.queue import reserved
from core.runs.results import checking as of_runs
from core.training.contract.files import write_json
from tests.builders.fake_checks import WAIT
from tests.builders.fake_runs import bare_run, eventually
from tests.builders.suites import suite_file

PROMPTS = ("before 1", "before 2", "before after", "after", "neither")


@pytest.fixture(autouse=True)
def _quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_runs, "MODULE", "tests.builders.fake_checks")


def ended(home: Home, suite: str, **runs: str) -> Comparison:
    """Keep an open comparison of runs in these states, to be asked a suite."""
    record.folder_of(home).mkdir(exist_ok=True)
    trials = []
    for seed, (name, state) in enumerate(runs.items()):
        folder = bare_run(home, name, seed=seed)
        write_json(folder / "status.json", {"state": state, "step": 12, "max_steps": 12})
        (folder / "output").mkdir()
        trials.append(Trial("lora", seed, fields={"check_suites": suite}, id=name))
    comparison = Comparison("20261130-120000", 0.0, "Which?", "python app.py", tuple(trials))
    comparison = replace(comparison, is_open=True, is_reported=False, has_checks=True)
    record.save(home, comparison)
    return comparison


def carried_on(home: Home, comparison: Comparison) -> Comparison:
    """Conduct and check a comparison until it is over."""
    carrier = keeper.Keeper(home)
    while not comparison.is_reported:
        carrier.check()
        carrier.advance()
        comparison = record.read_comparison(home, comparison.id)
    return comparison


def counts(home: Home, name: str) -> list[tuple[str, int, int]]:
    run = record.run_named(home, name)
    assert run
    return [(each.name, each.before, each.after) for each in run.checks]


def test_every_finished_run_is_checked_and_reported(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "mine", *PROMPTS)
    comparison = carried_on(home, ended(home, suite, a="finished", b="failed", c="finished"))
    assert counts(home, "a") == counts(home, "c") == [("mine", 3, 2)]
    assert counts(home, "b") == []
    assert comparison.checked == {"a": "", "c": ""}
    report = record.folder_of(home) / f"{comparison.id}-report.json"
    rows = json.loads(report.read_text())["runs"]
    assert [[each["after"] for each in row["checks"]] for row in rows] == [[2], [], [2]]


def test_nothing_is_checked_while_a_run_waits(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "mine", *PROMPTS)
    comparison = ended(home, suite, a="finished", b="queued")
    assert checking.check_next(home, comparison) == comparison
    assert counts(home, "a") == []


def test_comparison_without_checks_closes_at_once(home: Home, tmp_path: Path) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")
    record.save(home, replace(comparison, has_checks=False))
    keeper.Keeper(home).advance()
    assert not record.read_comparison(home, comparison.id).is_open
    assert counts(home, "a") == []


def test_results_that_are_there_are_not_asked_again(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "mine", *PROMPTS)
    comparison = ended(home, suite, a="finished")
    run = record.run_named(home, "a")
    assert run
    of_runs.check(run, of_runs.find_suites(run, [suite]))
    (kept,) = (run.folder / "checks").glob("mine.json")
    before = kept.stat().st_mtime_ns
    assert carried_on(home, comparison).checked == {"a": ""}
    assert kept.stat().st_mtime_ns == before


def test_check_that_cannot_be_is_named_and_tried_again(home: Home, tmp_path: Path) -> None:
    suite = tmp_path / "mine.jsonl"
    comparison = carried_on(home, ended(home, str(suite), a="finished"))
    assert "mine.jsonl" in comparison.checked["a"]
    said = cautions(summary_of(home, comparison))
    assert any(each.startswith("LoRA, seed 0 was not checked: ") for each in said)
    suite_file(tmp_path, "mine", *PROMPTS)
    comparison = carried_on(home, conduct.start(home, comparison))
    assert comparison.checked == {"a": ""}


def test_stop_ends_a_check_and_continue_repeats_it(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "mine", WAIT)
    comparison = ended(home, suite, a="finished")
    check = threading.Thread(target=checking.check_next, args=(home, comparison))
    check.start()
    eventually(lambda: [task.child for task in read_schedule(home).tasks.values()], any)
    conduct.stop(home, comparison)
    check.join(timeout=30)
    assert not check.is_alive()
    comparison = keeper.carry_on(home, comparison)
    assert (comparison.is_open, comparison.is_reported, comparison.checked) == (False, True, {})
    said = cautions(summary_of(home, comparison))
    assert (
        "LoRA, seed 0 was not checked: the comparison was stopped before; `python app.py compare "
        f"--resume {comparison.id}` checks it."
    ) in said
    suite_file(tmp_path, "mine", *PROMPTS)
    assert carried_on(home, conduct.start(home, comparison)).checked == {"a": ""}


def test_check_waits_for_the_device(home: Home, tmp_path: Path) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")
    with reserved(home, 0, "export", "an export"):
        assert checking.check_next(home, comparison).checked == {}
    assert checking.check_next(home, comparison).checked == {"a": ""}


def test_two_programs_do_not_check_at_once(home: Home, tmp_path: Path) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")
    with FileLock(record.folder_of(home) / "checks.lock"):
        assert checking.check_next(home, comparison).checked == {}


def test_reward_model_is_not_checked(home: Home, tmp_path: Path) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")
    bare_run(home, "reward", stage="reward")
    only = replace(comparison, trials=(Trial("lora", 0, id="reward"),))
    assert checking.runs_to_check(home, only) == ()


def checked(home: Home, passed: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the findings on runs that pass so many of 40 questions, seed by seed."""
    record.folder_of(home).mkdir(exist_ok=True)
    trials = []
    for method, values in passed.items():
        for seed, after in enumerate(values):
            folder = bare_run(home, f"{method}-{seed}", method=method, seed=seed)
            (folder / "checks").mkdir()
            counts = {"name": "mine", "sha256": "a", "total": 40, "before": 20, "after": after}
            write_json(folder / "checks" / "mine.json", counts)
            trials.append(Trial(method, seed, id=folder.name))
    comparison = Comparison("20261130-120000", 0.0, "Which?", "python app.py", tuple(trials))
    return [each for each in findings(summary_of(home, comparison)) if each.startswith("mine")]


def test_checks_of_several_seeds_are_compared_seed_by_seed(home: Home) -> None:
    assert checked(home, {"full": (36, 38, 37), "lora": (30, 32, 31)}) == [
        "mine, Full: 20 of 40 before, 36 and 38 and 37 after: "
        "more than chance explains with 3 of 3 seeds.",
        "mine, LoRA: 20 of 40 before, 30 and 32 and 31 after: "
        "more than chance explains with 3 of 3 seeds.",
        "mine: Full passes more than LoRA: by 15 ± 0 points (95 %, 3 seeds), "
        "more than chance explains.",
    ]


def test_seeds_that_disagree_show_no_difference(home: Home) -> None:
    said = checked(home, {"full": (36, 22, 37), "lora": (30, 38, 31)})
    assert said[-1] == "mine: no difference beyond chance between LoRA and Full."


def test_one_seed_is_judged_by_its_questions(home: Home) -> None:
    said = checked(home, {"full": (36,), "lora": (21,)})
    assert said[1] == "mine, LoRA: 20 of 40 before, 21 after: no difference beyond chance."
    assert said[-1].startswith("mine: Full passes more than LoRA, by at least ")


def test_run_that_is_deleted_during_its_check_stays_deleted(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "mine", *PROMPTS)
    comparison = ended(home, suite, a="finished", b="finished")

    def delete_it() -> bool:
        if record.run_named(home, "a"):
            delete(home, "a")
        return False

    comparison = checking.check_next(home, comparison, delete_it)
    assert not (home.runs / "a").exists()
    assert set(carried_on(home, comparison).checked) >= {"b"}
    assert counts(home, "b") == [("mine", 3, 2)]
    restore(home, "a")


def test_suite_outside_the_folders_of_who_asked_is_never_read(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "private", *PROMPTS)
    asked = replace(ended(home, suite, a="finished"), folders=(str(home.path),))
    record.save(home, asked)
    comparison = carried_on(home, asked)
    assert "private.jsonl is in no folder that this page may read" in comparison.checked["a"]
    assert counts(home, "a") == []


def test_missing_suite_outside_the_folders_sounds_as_one_that_is_there(tmp_path: Path) -> None:
    there = suite_file(tmp_path, "private", *PROMPTS)
    said = []
    for name in (there, str(tmp_path / "missing.jsonl")):
        with only_in([tmp_path / "home"]), pytest.raises(SpecError) as refused:
            find_suite(name, ())
        said.append(str(refused.value).replace(name, ""))
    assert said[0] == said[1]


def test_suite_is_found_from_another_folder(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_file(tmp_path, "mine", *PROMPTS)
    monkeypatch.chdir(tmp_path)
    fields = {"model": "demo", "dataset": "demo", "check_suites": "identity, mine.jsonl"}
    (variant,) = plan_variants(Study.parse(fields, ("lora",)))
    named = record.trial_of(variant).fields["check_suites"]
    assert named == f"identity,{tmp_path / 'mine.jsonl'}"


def test_suites_of_a_run_that_was_checked_in_training_are_its_copies(
    home: Home, tmp_path: Path
) -> None:
    comparison = ended(home, str(tmp_path / "gone.jsonl"), a="finished")
    folder = home.runs / "a"
    job = json.loads((folder / "job.json").read_text())
    (folder / "data" / "suites").mkdir(parents=True)
    suite_file(folder / "data" / "suites", "gone", *PROMPTS)
    job["check_suites"] = "data/suites/gone.jsonl"
    write_json(folder / "job.json", job)
    assert carried_on(home, comparison).checked == {"a": ""}
    assert counts(home, "a") == [("gone", 3, 2)]


def test_results_that_are_gone_are_asked_for_again(home: Home, tmp_path: Path) -> None:
    suite = suite_file(tmp_path, "mine", *PROMPTS)
    comparison = carried_on(home, ended(home, suite, a="finished"))
    shutil.rmtree(home.runs / "a" / "checks")
    home.touch()
    carried_on(home, conduct.start(home, comparison))
    assert counts(home, "a") == [("mine", 3, 2)]


def test_nothing_is_asked_on_a_full_disk(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")

    usage = shutil.disk_usage(home.path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OSError, match="No space left"):
        checking.check_next(home, comparison)
    assert counts(home, "a") == []


def test_card_that_is_gone_ends_the_wait(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")

    def gone(_device: int) -> None:
        raise SpecError(Problem("device", "this machine has no GPU 1", "choose 0 (T4)"))

    monkeypatch.setattr("core.runs.queue.card_of", gone)
    checked = checking.check_next(home, comparison).checked
    assert checked == {"a": "this machine has no GPU 1"}


def test_waiting_for_the_device_writes_nothing(home: Home, tmp_path: Path) -> None:
    comparison = ended(home, suite_file(tmp_path, "mine", *PROMPTS), a="finished")
    path = record.folder_of(home) / f"{comparison.id}.json"
    written = path.stat().st_mtime_ns
    with reserved(home, 0, "export", "an export"):
        checking.check_next(home, comparison)
    assert path.stat().st_mtime_ns == written
