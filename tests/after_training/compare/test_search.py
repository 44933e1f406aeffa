"""Search: ranges that are read, settings that are chosen, runs that are pruned."""

import math

import pytest
from pydantic import TypeAdapter

from core.after_training.compare import optimizer
from core.after_training.compare.optimizer import WORST, Tried
from core.after_training.compare.search import Range, Search
from core.job import SpecError
from core.models import demo_fields

DEMO = dict(demo_fields())
RATE = {"learning_rate": ["1e-5..1e-3"]}
NEEDS_OPTUNA = pytest.mark.skipif(not optimizer.is_installed(), reason="needs Optuna")


def search_for(axes: dict[str, list[str]], num_runs: int = 12, **changes: object) -> Search:
    return Search.parse({**DEMO, **changes}, ["lora"], axes, num_runs)


def bowl(search: Search, num_runs: int) -> list[Tried]:
    """Try runs whose loss is least at a learning rate of 1e-4."""
    tried: list[Tried] = []
    for _ in range(num_runs):
        values = optimizer.next_values(search, tried)
        loss = (math.log10(float(str(values["learning_rate"]))) + 4) ** 2
        tried.append(Tried(values, "finished", loss, {10: loss}))
    return tried


def test_range_over_factors_is_searched_by_factors() -> None:
    axes = search_for({**RATE, "lora_r": ["8..64"], "weight_decay": ["0..0.1"]}).axes
    assert axes["learning_rate"] == Range(1e-5, 1e-3)
    assert axes["lora_r"] == Range(8, 64, is_whole=True)
    logs = [axis.is_log for axis in axes.values() if isinstance(axis, Range)]
    assert logs == [True, False, False]


def test_listed_values_are_choices() -> None:
    search = search_for({**RATE, "use_dora": ["true", "false"]})
    assert search.axes["use_dora"] == (True, False)


def test_several_methods_are_a_choice() -> None:
    search = Search.parse(DEMO, ["full", "lora"], RATE, 5)
    assert search.space["method"] == ("full", "lora")
    point = search.point_of({"method": "full", "learning_rate": 1e-4})
    assert point.label == "Full, learning_rate 0.0001"
    assert search.values_of(point) == {"method": "full", "learning_rate": 1e-4}


def test_search_reads_back_to_the_same() -> None:
    search = search_for({**RATE, "use_dora": ["true", "false"]})
    assert TypeAdapter(Search).validate_python(search.to_json()) == search


def test_chosen_numbers_are_short_and_within_the_range() -> None:
    ends = Range(1.2345e-5, 1.2355e-5)
    assert ends.rounded(1.23456e-5) == 1.2345e-5
    assert Range(1e-5, 1e-3).rounded(1.23456e-4) == 1.23e-4


@pytest.mark.parametrize(
    ("axes", "changes", "said"),
    [
        ({"learning_rate": ["1e-3..1e-5"]}, {}, "is no range; write learning_rate=SMALLEST"),
        ({"learning_rate": ["1e-3..1e-3"]}, {}, "is no range"),
        ({"use_dora": ["0..1"]}, {}, "use_dora is no number"),
        ({"lora_r": ["0..64"]}, {}, "lora_r"),
        ({"learning_rat": ["1..2"]}, {}, r"did you mean learning_rate\?"),
        ({"seed": ["1..5"]}, {}, "seed is no axis"),
        ({"learning_rate": ["1e-5..fast"]}, {}, "'1e-5..fast' is not a number"),
        ({}, {}, "there is nothing to search"),
        (RATE, {"eval_fraction": 0.0}, "no rows are held out"),
        (RATE, {"stage": "grpo"}, "evaluation loss of grpo"),
    ],
)
def test_bad_search_says_what_to_do(
    axes: dict[str, list[str]], changes: dict[str, object], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        search_for(axes, **changes)


@pytest.mark.parametrize("num_runs", [0, 1, 501])
def test_number_of_runs_has_limits(num_runs: int) -> None:
    with pytest.raises(SpecError, match="give 2 to 500"):
        search_for(RATE, num_runs)


def test_without_optuna_the_search_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "PACKAGE", "optuna_that_is_not_there")
    with pytest.raises(SpecError, match=r"requirements-optuna\.txt.*grid"):
        optimizer.next_values(search_for(RATE), ())


@NEEDS_OPTUNA
def test_same_runs_lead_to_the_same_choice() -> None:
    search = search_for({**RATE, "lora_r": ["4..64"], "use_dora": ["true", "false"]})
    first = optimizer.next_values(search, ())
    assert optimizer.next_values(search, ()) == first
    tried = (Tried(first, "running"),)
    assert optimizer.next_values(search, tried) != first


@NEEDS_OPTUNA
def test_search_comes_near_the_best_settings() -> None:
    tried = bowl(search_for(RATE, num_runs=30), 30)
    late = [each.loss for each in tried[-10:] if each.loss is not None]
    early = [each.loss for each in tried[:10] if each.loss is not None]
    assert sum(late) < sum(early) / 2


@NEEDS_OPTUNA
def test_settings_that_diverge_are_kept_away_from() -> None:
    search = search_for(RATE, num_runs=40)
    tried: list[Tried] = []
    for _ in range(40):
        values = optimizer.next_values(search, tried)
        rate = float(str(values["learning_rate"]))
        tried.append(Tried(values, "finished", WORST if rate > 1e-4 else 9 + math.log10(rate)))
    late = [float(str(each.values["learning_rate"])) > 1e-4 for each in tried[-15:]]
    assert sum(late) < 5


@NEEDS_OPTUNA
@pytest.mark.parametrize(("loss", "hopeless"), [(9.0, True), (1.0, False)])
def test_run_worse_than_the_median_is_hopeless(loss: float, hopeless: bool) -> None:
    search = search_for(RATE)
    finished = [
        Tried({"learning_rate": 1e-4}, "finished", value, {10: value, 20: value})
        for value in (2.0, 3.0, 4.0)
    ]
    run = Tried({"learning_rate": 5e-4}, "running", losses={10: loss})
    assert optimizer.is_hopeless(search, finished, run, warm_up=5) is hopeless


@NEEDS_OPTUNA
def test_nothing_is_hopeless_before_others_have_finished() -> None:
    search = search_for(RATE)
    run = Tried({"learning_rate": 5e-4}, "running", losses={10: 9.0})
    assert not optimizer.is_hopeless(search, (), run, warm_up=0)
    good = [Tried({"learning_rate": 1e-4}, "finished", 1.0, {10: 1.0})] * 3
    assert not optimizer.is_hopeless(search, good, run, warm_up=11)
    assert not optimizer.is_hopeless(search, good, Tried(run.values, "running"), warm_up=0)
