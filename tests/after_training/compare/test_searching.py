"""Search that is conducted: runs one by one, pruned, stopped, continued by another process."""

import math
from pathlib import Path

import pytest

from core.after_training.compare import Comparison, conduct, keeper, optimizer, record
from core.after_training.compare.report import findings, summary_of
from core.after_training.compare.search import Search
from core.after_training.compare.study import Budget
from core.job import SpecError
from core.job.places import only_in
from core.models import demo_fields
from core.runs import Home, Run, launch, queue
from core.runs.sentences import state_sentence
from tests.builders.fake_runs import DIVERGED, EVALUATED, NEVER_END

pytestmark = [
    pytest.mark.usefixtures("fake_program"),
    pytest.mark.skipif(not optimizer.is_installed(), reason="needs Optuna"),
]
RATES = {"learning_rate": ["1e-5..1e-2"]}


def begun(
    home: Home, num_runs: int, seed: int = EVALUATED, budget: Budget | None = None
) -> Comparison:
    """Start a search on the fake program."""
    fields = {**demo_fields(), "seed": seed}
    search = Search.parse(fields, ["lora"], RATES, num_runs)
    comparison = record.new_comparison(
        home, (), search.question, "compare", budget=budget, search=search
    )
    return conduct.start(home, comparison)


def carried_on(home: Home, comparison: Comparison) -> Comparison:
    """Conduct a search until it has ended."""
    while conduct.is_active(home, comparison):
        comparison = conduct.advance(home, comparison)
        queue.advance(home)
        for run in record.runs_of(home, comparison):
            launch.wait(home, run.id, 0.02)
    return comparison


def rates(comparison: Comparison) -> list[object]:
    return [trial.settings["learning_rate"] for trial in comparison.trials]


def states(home: Home, comparison: Comparison) -> list[str]:
    return [record.state_of(home, trial) for trial in comparison.trials]


def stopped_run(home: Home, comparison: Comparison) -> Run:
    """Return the run that was pruned."""
    (pruned,) = (each for each in comparison.trials if each.pruned)
    run = record.run_of(home, pruned)
    assert run is not None
    return run


def test_one_run_is_created_at_a_time(home: Home) -> None:
    comparison = begun(home, 2)
    assert len(comparison.trials) == 1
    ended = carried_on(home, comparison)
    assert states(home, ended) == ["finished", "finished"]
    assert len(set(rates(ended))) == 2
    assert not ended.is_open


def test_search_names_files_only_where_who_asked_it_may(home: Home, tmp_path: Path) -> None:
    private = tmp_path / "private.jsonl"
    private.write_text('{"prompt": "1?", "completion": "1."}\n' * 20)
    search = Search.parse(demo_fields(), ["lora"], {"dataset": [str(private)]}, 2)
    with only_in([home.path]):
        comparison = record.new_comparison(home, (), search.question, "compare", search=search)
    comparison = conduct.start(home, comparison)  # as a conductor that may read every file
    reasons = [trial.left_out for trial in comparison.trials]
    assert len(reasons) == 2
    assert all("is in no folder that this page may read" in each for each in reasons)


@pytest.mark.slow
def test_search_does_not_depend_on_who_conducts_it(home: Home) -> None:
    by_terminal = carried_on(home, begun(home, 3))
    by_page = begun(home, 3)
    carrier = keeper.Keeper(home)
    while conduct.is_active(home, record.read_comparison(home, by_page.id)):
        carrier.advance()
        queue.advance(home)
    by_page = record.read_comparison(home, by_page.id)
    assert rates(by_page) == rates(by_terminal)
    assert (record.folder_of(home) / f"{by_page.id}-report.html").exists()


@pytest.mark.slow
def test_hopeless_run_is_pruned_and_says_so(home: Home) -> None:
    comparison = begun(home, 6)
    search = comparison.search
    assert search is not None
    while not any(trial.pruned for trial in comparison.trials) and comparison.is_open:
        comparison = conduct.advance(home, comparison)
        queue.advance(home)
    run = launch.wait(home, stopped_run(home, comparison).id, 5)
    assert run.state == "stopped"
    assert "worse than the median" in state_sentence(run)
    losses = {rate: abs(math.log10(float(str(rate))) + 3) for rate in rates(comparison)}
    assert losses[run.job.learning_rate] > sorted(losses.values())[1]
    again = conduct.start(home, conduct.stop(home, comparison))
    assert record.state_of(home, again.trials[rates(again).index(run.job.learning_rate)]) == (
        "stopped"
    )
    assert "1 pruned" in findings(summary_of(home, again))[0]


def test_failed_run_counts_and_the_search_continues(home: Home) -> None:
    ended = carried_on(home, begun(home, 2, seed=DIVERGED))
    assert states(home, ended) == ["failed", "failed"]


def test_stopped_search_continues_with_its_own_run(home: Home) -> None:
    comparison = conduct.stop(home, begun(home, 3, seed=NEVER_END))
    comparison = carried_on(home, comparison)
    assert states(home, comparison) == ["stopped"]
    again = conduct.start(home, comparison)
    assert [trial.id for trial in again.trials] == [trial.id for trial in comparison.trials]
    assert conduct.is_active(home, again)
    conduct.stop(home, again)


def test_used_up_budget_ends_the_search_with_a_sentence(home: Home) -> None:
    budget = Budget(max_hours=0.5 / 3600)
    comparison = begun(home, 5, budget=budget)
    assert "0.000138889 h" in record.budget_sentence(comparison)
    ended = carried_on(home, comparison)
    assert len(ended.trials) == 1
    assert "ended after 1 of 5 runs: beyond the budget" in findings(summary_of(home, ended))[0]


def test_search_without_optuna_is_closed_with_the_reason(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = begun(home, 3)
    monkeypatch.setattr(optimizer, "PACKAGE", "optuna_that_is_not_there")
    closed = conduct.advance(home, comparison)
    assert not closed.is_open
    assert "requirements-optuna.txt" in closed.note
    with pytest.raises(SpecError, match="Optuna"):
        conduct.start(home, closed)
