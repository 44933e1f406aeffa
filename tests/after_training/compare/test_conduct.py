"""Runs of a comparison: created, queued, stopped, continued after a crash."""

import json
from dataclasses import replace

import pytest

from core.after_training.compare import (
    Comparison,
    Study,
    conduct,
    keeper,
    plan_variants,
    record,
)
from core.after_training.compare.study import Budget
from core.job import SpecError
from core.models import demo_fields
from core.runs import Home, launch, queue
from core.speed import RowStatistics
from tests.builders.fake_runs import DIVERGED, NEVER_END, eventually

pytestmark = pytest.mark.usefixtures("fake_program")


def planned(home: Home, seeds: tuple[int, ...], methods: tuple[str, ...] = ("lora",)) -> Comparison:
    """Keep a comparison with these seeds, which tell the fake program what to do."""
    fields = {**demo_fields(), "gradient_accumulation_steps": 1}
    trials = []
    for seed in seeds:
        found = plan_variants(Study.parse({**fields, "seed": seed}, methods))
        trials += record.new_comparison(home, found, "Which?", "compare").trials
    comparison = record.new_comparison(home, (), "Which?", "compare --demo")
    comparison = Comparison(comparison.id, comparison.created, "Which?", "compare", tuple(trials))
    record.save(home, comparison)
    return comparison


def follow(home: Home, comparison: Comparison) -> list[str]:
    """Advance the queue until all runs have ended. Return their states."""
    while conduct.is_active(home, comparison):
        comparison = conduct.advance(home, comparison)
        queue.advance(home)
        for run in record.runs_of(home, comparison):
            launch.wait(home, run.id, 0.05)
    return [record.state_of(home, trial) for trial in comparison.trials]


def test_all_runs_are_trained_one_after_the_other(home: Home) -> None:
    comparison = conduct.start(home, planned(home, (42, 43)))
    assert follow(home, comparison) == ["finished", "finished"]


def test_a_failed_run_does_not_keep_the_others_from_training(home: Home) -> None:
    comparison = conduct.start(home, planned(home, (DIVERGED, 43)))
    assert follow(home, comparison) == ["failed", "finished"]


def test_a_run_that_is_left_out_is_not_created(home: Home) -> None:
    fields = {**demo_fields(), "init_lora_weights": "loftq"}
    found = plan_variants(Study.parse(fields, ["lora"]))
    comparison = record.new_comparison(home, found, "Which?", "compare")
    started = conduct.start(home, comparison)
    assert [record.state_of(home, each) for each in started.trials] == ["left out"]


def test_the_record_reads_back_to_the_same(home: Home) -> None:
    comparison = conduct.start(home, planned(home, (42,)))
    assert record.read_comparison(home, comparison.id) == comparison


def test_after_a_crash_only_what_is_missing_is_created(home: Home) -> None:
    first = conduct.start(home, planned(home, (42,)))
    more = planned(home, (42, 43))
    cut_off = more.with_trial(0, first.trials[0])
    record.save(home, cut_off)
    again = conduct.start(home, cut_off)
    assert again.trials[0].id == first.trials[0].id
    assert follow(home, again) == ["finished", "finished"]


def test_stop_all_and_continue(home: Home) -> None:
    comparison = conduct.start(home, planned(home, (NEVER_END, 43)))
    running = record.run_of(home, comparison.trials[0])
    assert running is not None
    eventually(lambda: record.runs_of(home, comparison)[0], lambda run: run.step > 0)
    comparison = conduct.stop(home, comparison)
    assert set(follow(home, comparison)) == {"stopped"}
    resumed = conduct.start(home, comparison)
    assert conduct.is_active(home, resumed)


def test_a_run_stopped_alone_stays_stopped(home: Home) -> None:
    comparison = conduct.start(home, planned(home, (NEVER_END, 43)))
    alone = record.runs_of(home, comparison)[0]
    eventually(lambda: record.runs_of(home, comparison)[0], lambda run: run.step > 0)
    launch.request_stop(alone)
    assert follow(home, comparison) == ["stopped", "finished"]
    assert not conduct.is_active(home, conduct.start(home, comparison))


def limited(home: Home, max_hours: float) -> Comparison:
    """Start three runs whose time no forecast knows, within a limit."""
    study = Study.parse({**demo_fields(), "gpu": "local"}, ["lora"], num_seeds=3)
    budget = Budget(max_hours=max_hours)
    found = plan_variants(study)
    comparison = record.new_comparison(home, found, "Which?", "compare", budget=budget)
    return conduct.start(home, comparison)


def test_unknown_time_is_measured_and_the_rest_left_out(home: Home) -> None:
    comparison = limited(home, max_hours=0.5 / 3600)
    assert "It is measured" in record.budget_sentence(comparison)
    assert [record.state_of(home, each) for each in comparison.trials][1:] == ["planned"] * 2
    assert follow(home, comparison) == ["finished", "left out", "left out"]
    last = record.read_comparison(home, comparison.id).trials[2]
    assert last.left_out.startswith("beyond the budget of 0.000138889 h: ")


@pytest.mark.slow
def test_limit_that_is_never_reached_leaves_nothing_out(home: Home) -> None:
    assert follow(home, limited(home, max_hours=1)) == ["finished"] * 3


def test_page_creates_what_a_killed_terminal_left(home: Home) -> None:
    comparison = planned(home, (42, 43))
    record.save(home, replace(comparison, is_open=True))
    carrier = keeper.Keeper(home)
    while record.read_comparison(home, comparison.id).is_open:
        carrier.advance()
        queue.advance(home)
    ended = record.read_comparison(home, comparison.id)
    assert [record.state_of(home, each) for each in ended.trials] == ["finished", "finished"]
    assert (record.folder_of(home) / f"{comparison.id}-report.html").exists()


def test_page_reports_what_the_budget_left_out(home: Home) -> None:
    comparison = limited(home, max_hours=0.5 / 3600)
    carrier = keeper.Keeper(home)
    while record.read_comparison(home, comparison.id).is_open:
        carrier.advance()
        queue.advance(home)
    path = record.folder_of(home) / f"{comparison.id}-report.json"
    states = [run["state"] for run in json.loads(path.read_text())["runs"]]
    assert states == ["finished", "left out", "left out"]


def test_closed_comparison_is_left_alone(home: Home) -> None:
    comparison = planned(home, (42,))
    keeper.Keeper(home).advance()
    assert record.read_comparison(home, comparison.id) == comparison


def test_record_edited_to_nonsense_stops_no_other(home: Home) -> None:
    odd = planned(home, (42,))
    search = {"fields": {}, "methods": [], "axes": {"lora_r": [8]}, "num_runs": 3, "rows": None}
    path = record.folder_of(home) / f"{odd.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_open": True, "search": search}))
    sound = planned(home, (43,))
    record.save(home, replace(sound, is_open=True))
    keeper.Keeper(home).advance()
    assert record.read_comparison(home, sound.id).trials[0].id


def test_record_of_an_early_version_is_read(home: Home) -> None:
    comparison = planned(home, (42,))
    path = record.folder_of(home) / f"{comparison.id}.json"
    fields = json.loads(path.read_text())
    for name in ("is_open", "budget", "search", "note"):
        del fields[name]
    for name in ("hours", "pruned", "rows"):
        del fields["trials"][0][name]
    path.write_text(json.dumps(fields))
    assert record.read_comparison(home, comparison.id).budget == Budget()


@pytest.mark.parametrize(
    "change",
    [
        {"budget": 3},
        {"budget": {"max_usd": "x"}},
        {"search": {}},
        {"id": "../x"},
        {"created": 1e300},
        {"created": float("nan")},
    ],
)
def test_damaged_record_is_refused(home: Home, change: dict[str, object]) -> None:
    comparison = planned(home, (42,))
    path = record.folder_of(home) / f"{comparison.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SpecError, match="is damaged"):
        record.read_comparison(home, comparison.id)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "zzz"},
        {"id": 7},
        {"settings": None},
        {"fields": [1]},
        {"seed": "x"},
        {"left_out": [3]},
        {"hours": "x"},
    ],
)
def test_damaged_trial_is_refused(home: Home, change: dict[str, object]) -> None:
    comparison = planned(home, (42,))
    path = record.folder_of(home) / f"{comparison.id}.json"
    fields = json.loads(path.read_text())
    fields["trials"][0] |= change
    path.write_text(json.dumps(fields))
    with pytest.raises(SpecError, match="is damaged"):
        record.read_comparison(home, comparison.id)


def test_record_of_a_newer_version_is_read(home: Home) -> None:
    comparison = planned(home, (42,))
    path = record.folder_of(home) / f"{comparison.id}.json"
    fields = json.loads(path.read_text())
    for part in (fields, fields["trials"][0], fields["budget"]):
        part["colour"] = "red"
    path.write_text(json.dumps(fields))
    assert record.read_comparison(home, comparison.id) == comparison


def test_run_predicts_what_was_shown_before_the_start(home: Home) -> None:
    rows = RowStatistics(num_rows=100, mean_tokens=20.0, p95_tokens=60, max_tokens=64)
    found = plan_variants(Study.parse(demo_fields(), ("lora",)), rows)
    comparison = conduct.start(home, record.new_comparison(home, found, "Which?", "compare"))
    (run,) = record.runs_of(home, comparison)
    assert found[0].estimate is not None
    assert run.predicted_bytes == found[0].estimate.total_bytes
