"""Flags of `compare` as a study or a search, and the command that asks the same again."""

import pytest

from core.after_training.compare import Comparison, Trial, conduct, optimizer, record
from core.after_training.compare.search import Range
from core.job import ChildError, Problem, SpecError
from core.runs import Home
from core.runs.engines import Placement
from core.runs.results import checking
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run
from ui.terminal.compare import compare
from ui.terminal.models import show_models
from ui.terminal.study_flags import StudyFlags

NEEDS_OPTUNA = pytest.mark.skipif(not optimizer.is_installed(), reason="needs Optuna")
RATES = "learning_rate=1e-5..1e-3"


def flags(**typed: object) -> StudyFlags:
    return StudyFlags(demo=True, **typed)


def test_without_optuna_a_search_says_what_to_install(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "PACKAGE", "optuna_that_is_not_there")
    with pytest.raises(SpecError, match=r"pip install --no-deps -r requirements-optuna\.txt"):
        flags(optimize="5", axis=(RATES,)).search(home)


def test_without_optuna_a_grid_still_works(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "PACKAGE", "optuna_that_is_not_there")
    study = flags(axis=("lora_r=8,32",), methods="lora").study(home)
    assert [point.label for point in study.points()] == ["LoRA, lora_r 8", "LoRA, lora_r 32"]


def test_axis_given_twice_is_refused(home: Home) -> None:
    with pytest.raises(SpecError, match="lora_r is given twice; give all its values at once"):
        flags(axis=("lora_r=8", "--lora-r=32")).study(home)


@pytest.mark.parametrize("flag", ["seeds", "optimize"])
def test_endless_number_is_refused_in_few_words(home: Home, flag: str) -> None:
    asked = flags(axis=(RATES,), **{flag: "9" * 5000})
    with pytest.raises(SpecError, match="give ") as refused:
        asked.search(home) if flag == "optimize" else asked.study(home)
    assert len(str(refused.value)) < 200


def test_at_once_is_for_clusters() -> None:
    with pytest.raises(SpecError, match="at-once: on this machine one run trains on each device"):
        flags(at_once="8").num_at_once(Placement())


@pytest.mark.parametrize("text", ["0", "101", "many", "9" * 5000])
def test_impossible_number_at_once_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a number from 1 to 100") as refused:
        flags(at_once=text).num_at_once(Placement("slurm"))
    assert len(str(refused.value)) < 200


def test_number_at_once_is_kept_and_asked_again() -> None:
    asked = flags(optimize="9", at_once="8")
    assert asked.num_at_once(Placement("slurm")) == 8
    assert "--optimize 9 --at-once 8" in asked.command()


def test_endless_length_is_refused(home: Home) -> None:
    with pytest.raises(SpecError, match="is not a number; give 2048 or the like"):
        show_models(home=str(home.path), gpu="rtx-3060", max_length="9" * 5000)


@pytest.mark.parametrize("text", ["1.5", "0.5", "0", "-1", "nan", "inf", "many"])
def test_budget_of_runs_is_a_whole_number_above_zero(home: Home, text: str) -> None:
    with pytest.raises(SpecError, match="max-runs"):
        flags(max_runs=text).study(home)


@NEEDS_OPTUNA
def test_budget_of_runs_limits_a_search(home: Home) -> None:
    search = flags(optimize="20", max_runs="6", axis=(RATES,)).search(home)
    assert search.num_runs == 6
    assert search.axes == {"learning_rate": Range(1e-5, 1e-3)}


@NEEDS_OPTUNA
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"optimize": "many"}, "'many' is not a number of runs"),
        ({"optimize": "5", "seeds": "3"}, "each setting with one seed"),
    ],
)
def test_bad_search_says_what_to_do(home: Home, typed: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        flags(axis=(RATES,), **typed).search(home)


def test_command_asks_the_same_again() -> None:
    asked = flags(optimize="5", axis=(RATES,), max_hours="2", split_text="whole", no_checks=True)
    assert asked.command() == (
        "python app.py compare --demo --optimize 5 --max-hours 2 --split-text whole --no-checks "
        f"--axis {RATES}"
    )


def test_cards_are_compared_by_estimate_only(home: Home) -> None:
    with pytest.raises(SpecError, match="gpu is an axis of estimates only"):
        compare(home=str(home.path), demo=True, axis=("gpu=t4,l4",), methods="lora")


def test_comparison_that_is_stopped_while_it_checks_did_not_succeed(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(bare_run(home, "a") / "status.json", {"state": "finished", "step": 1})
    record.folder_of(home).mkdir()
    trials = (Trial("lora", 42, id="a"),)
    begun = Comparison("20261130-120000", 0.0, "?", "compare", trials, has_checks=True)
    record.save(home, begun)

    def stop(*_words: object, **_flags: object) -> None:
        conduct.stop(home, begun)
        raise ChildError("cancelled", Problem("check", "was cancelled", ""))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "check", stop)
        assert compare(home=str(home.path), resume=begun.id) == 130
    said = " ".join(capsys.readouterr().out.split())
    assert f"Not checked: 1 run. Later: compare --resume {begun.id}" in said
