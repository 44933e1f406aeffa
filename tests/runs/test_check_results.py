"""Results of checks where runs are listed, compared, bundled and published."""

import zipfile
from pathlib import Path

import pytest

from core.after_training import bundle
from core.after_training.differences import compare_runs
from core.runs import Home, Run, read
from core.runs.listing import list_runs
from core.runs.sentences import check_words
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run

IDENTITY = {
    "name": "identity",
    "total": 100,
    "before": 0,
    "after": 89,
    "step": 20,
    "p_value": 1e-20,
    "sha256": "a" * 64,
    "tests": [{"prompt": "Who are you?", "before": "A model.", "after": "I am Pip."}],
}
CAPABILITIES = {"name": "capabilities", "total": 36, "before": 36, "after": 22}


def checked_run(home: Home, name: str, *results: dict[str, object]) -> Run:
    """Return a finished run with these results of checks."""
    folder = bare_run(home, name)
    (folder / "checks").mkdir()
    for result in results:
        write_json(folder / "checks" / f"{result['name']}.json", result)
    return read(home, name)


def test_a_list_names_what_passed_and_the_usual_suites_first(home: Home) -> None:
    run = checked_run(home, "a", CAPABILITIES, {**IDENTITY, "name": "a suite"}, IDENTITY)
    assert check_words(run) == "identity 89/100, capabilities 22/36, a suite 89/100"
    assert check_words(checked_run(home, "b")) == ""


def test_results_of_another_step_than_the_result_say_so(home: Home) -> None:
    run = checked_run(home, "a", IDENTITY)
    (run.folder / "output").mkdir()
    write_json(run.folder / "output" / "manifest.json", {"step": 10})
    assert check_words(run) == "identity 89/100 at step 20"
    assert run.checks_of_result == ()


def test_the_list_changes_with_a_new_result(home: Home) -> None:
    folder = checked_run(home, "a").folder
    (before,) = list_runs(home)
    write_json(folder / "checks" / "identity.json", IDENTITY)
    (after,) = list_runs(home)
    assert after != before
    assert after.to_json()["checks"] == [
        {name: IDENTITY[name] for name in (*CAPABILITIES, "step", "p_value", "sha256")}
    ]


@pytest.mark.parametrize(
    "damage",
    [{"total": 0}, {"after": 101}, {"before": -1}, {"after": "89"}, {"name": 3}, {"step": "x"}],
)
def test_damaged_results_are_left_out(home: Home, damage: dict[str, object]) -> None:
    run = checked_run(home, "a", IDENTITY)
    write_json(run.folder / "checks" / "identity.json", IDENTITY | damage)
    (run.folder / "checks" / "torn.json").write_text('{"name": "torn", "tot')
    assert read(home, "a").checks == ()


def test_a_comparison_has_a_line_for_each_suite(home: Home) -> None:
    compared = [checked_run(home, "a", IDENTITY, CAPABILITIES), checked_run(home, "b", IDENTITY)]
    found = {each.name: each.values for each in compare_runs(compared)}
    assert found["check identity"] == ("0 → 89 of 100", "0 → 89 of 100")
    assert found["check capabilities"] == ("36 → 22 of 36", None)


def test_other_tests_of_one_name_are_not_compared(home: Home) -> None:
    others = {**IDENTITY, "sha256": "b" * 64}
    compared = [checked_run(home, "a", IDENTITY), checked_run(home, "b", others)]
    found = {each.name: each.values for each in compare_runs(compared)}
    assert found["check identity (aaaaaaaa)"] == ("0 → 89 of 100", None)
    assert found["check identity (bbbbbbbb)"] == (None, "0 → 89 of 100")


def test_a_bundle_holds_the_results_and_says_what_they_do_not_say(
    home: Home, tmp_path: Path
) -> None:
    run = checked_run(home, "a", IDENTITY)
    with zipfile.ZipFile(bundle.write_bundle(run, tmp_path / "run.zip")) as opened:
        told = opened.read("RUN.md").decode()
        assert "results/checks/identity.json" in opened.namelist()
    row = "| identity | 100 | 0 of 100 | 89 of 100 | 81% to 94% | gained: more than chance"
    assert row in told
    assert "What the numbers do not say" in told
    unchecked = bundle.write_bundle(checked_run(home, "b"), tmp_path / "b.zip")
    with zipfile.ZipFile(unchecked) as opened:
        assert "checks" not in opened.read("RUN.md").decode()
