"""One comparison on the Runs tab: watched, stopped, continued, its settings taken over."""

from collections.abc import Iterator

import pytest

from core.after_training.compare import (
    Comparison,
    Study,
    conduct,
    optimizer,
    plan_variants,
    record,
)
from core.after_training.compare.search import Search
from core.models import demo_fields
from core.runs import Home, launch, queue
from core.training.contract.files import write_json
from tests.builders.fake_runs import NEVER_END, eventually
from ui.handlers import FIRST_STATE, Handlers

pytestmark = pytest.mark.usefixtures("fake_program")
RATES = ["1e-3", "2e-3", "5e-3"]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def handlers(home: Home) -> Iterator[Handlers]:
    made = Handlers(home)
    yield made
    made.close()


def swept(home: Home, seed: int = 42, question: str = "Which?") -> Comparison:
    """Start a sweep of three learning rates on the fake program."""
    study = Study.parse({**demo_fields(), "seed": seed}, (), {"learning_rate": RATES})
    comparison = record.new_comparison(home, plan_variants(study), question, "compare")
    return conduct.start(home, comparison)


def carried_on(home: Home, comparison: Comparison) -> Comparison:
    """Conduct a comparison until it has ended."""
    while conduct.is_active(home, comparison):
        comparison = conduct.advance(home, comparison)
        queue.advance(home)
        for run in record.runs_of(home, comparison):
            launch.wait(home, run.id, 0.05)
    return comparison


def shown(handlers: Handlers, **view: str) -> dict[str, object]:
    return handlers.runs.on_view(**view)


def evaluated(home: Home, comparison: Comparison, losses: tuple[float, ...]) -> None:
    """Finish all runs with these evaluation losses, without a program."""
    for trial, loss in zip(comparison.trials, losses, strict=True):
        folder = home.runs / trial.id
        write_json(folder / "status.json", {"state": "finished", "step": 20, "max_steps": 20})
        (folder / "metrics.jsonl").write_text(f'{{"step": 20, "loss": 1, "eval_loss": {loss}}}\n')


def created(home: Home) -> Comparison:
    """Return a sweep of three runs that have finished, the second with the lowest loss."""
    comparison = conduct.stop(home, swept(home, NEVER_END))
    carried_on(home, comparison)
    evaluated(home, comparison, (2.0, 1.0, 3.0))
    return comparison


def test_without_comparisons_the_panel_is_hidden(handlers: Handlers) -> None:
    assert shown(handlers)["comparisons_panel"]["visible"] is False


def test_newest_comparison_is_shown_with_its_best_run(home: Home, handlers: Handlers) -> None:
    comparison = created(home)
    updates = shown(handlers)
    assert updates["comparison_id"]["value"] == comparison.id
    assert "★ LoRA, learning_rate 0.002" in updates["comparison_runs"]
    assert updates["chosen_trial"]["choices"][0] == (
        "Best run: LoRA, learning_rate 0.002, seed 1003",
        "best",
    )


def test_report_can_be_downloaded_once_all_have_ended(home: Home, handlers: Handlers) -> None:
    comparison = created(home)
    name = f'download="{comparison.id}-report.html"'
    assert name in shown(handlers)["comparison_runs"]


@pytest.mark.parametrize(("chosen", "rate"), [("best", 2e-3), ("2", 5e-3), ("", 2e-3)])
def test_settings_of_a_run_fill_the_form(
    home: Home, handlers: Handlers, chosen: str, rate: float
) -> None:
    comparison = created(home)
    updates = handlers.comparisons.on_use_settings(comparison.id, chosen, FIRST_STATE)
    assert updates["learning_rate"] == rate
    assert updates["dataset"] == "demo"
    assert updates["tabs"]["selected"] == "train"


def test_varied_setting_is_not_planned_again(home: Home, handlers: Handlers) -> None:
    fields = {**demo_fields(), "profile": "fastest"}
    study = Study.parse(fields, (), {"per_device_train_batch_size": ["1", "2"]})
    comparison = record.new_comparison(home, plan_variants(study), "Which?", "compare")
    updates = handlers.comparisons.on_use_settings(comparison.id, "1", FIRST_STATE)
    assert updates["per_device_train_batch_size"] == 2
    assert updates["form_state"].set_by_user == {"per_device_train_batch_size"}


def test_no_best_run_before_one_has_finished(home: Home, handlers: Handlers) -> None:
    comparison = swept(home, NEVER_END)
    updates = handlers.comparisons.on_use_settings(comparison.id, "best", FIRST_STATE)
    assert updates.keys() == {"comparison_message"}
    assert "No run has finished yet" in updates["comparison_message"]


def test_stop_all_can_be_undone(home: Home, handlers: Handlers) -> None:
    comparison = swept(home, NEVER_END)
    eventually(lambda: record.runs_of(home, comparison)[0], lambda run: run.step > 0)
    updates = handlers.comparisons.on_stop_comparison(comparison_id=comparison.id)
    assert "Continue undoes it" in updates["comparison_message"]
    carried_on(home, record.read_comparison(home, comparison.id))
    states = {record.state_of(home, trial) for trial in comparison.trials}
    assert states == {"stopped"}
    assert shown(handlers)["continue_comparison"]["visible"] is True
    handlers.comparisons.on_continue_comparison(comparison_id=comparison.id)
    assert any(run.is_active for run in record.runs_of(home, comparison))


def test_run_that_a_restart_interrupted_can_be_continued(home: Home, handlers: Handlers) -> None:
    comparison = created(home)
    assert shown(handlers)["continue_comparison"]["visible"] is False
    write_json(home.runs / comparison.trials[0].id / "status.json", {"state": "interrupted"})
    assert shown(handlers)["continue_comparison"]["visible"] is True


def test_one_run_is_stopped_and_the_others_continue(home: Home, handlers: Handlers) -> None:
    comparison = swept(home, NEVER_END)
    view = {"comparison_id": comparison.id}
    updates = handlers.comparisons.on_stop_trial("1", **view)
    assert "Stopping LoRA, learning_rate 0.002, seed 1003." in updates["comparison_message"]
    states = [record.state_of(home, trial) for trial in comparison.trials]
    assert states[1:] == ["stopped", "queued"]
    again = handlers.comparisons.on_stop_trial("1", **view)
    assert "Choose a run that trains or waits" in again["comparison_message"]


def test_its_runs_are_ticked_for_the_plot(home: Home, handlers: Handlers) -> None:
    comparison = created(home)
    updates = handlers.comparisons.on_show_runs(comparison_id=comparison.id)
    assert updates["compared"].split() == [trial.id for trial in comparison.trials]


def test_another_comparison_is_shown_with_its_best_run(home: Home, handlers: Handlers) -> None:
    first = created(home)
    created(home)
    updates = handlers.comparisons.on_choose_comparison(comparison_id=first.id)
    assert updates["comparison_id"]["value"] == first.id
    assert updates["chosen_trial"]["value"] == "best"


def test_text_of_users_is_escaped(home: Home, handlers: Handlers) -> None:
    study = Study.parse({**demo_fields(), "gpu": "rtx-3060"}, ["lora"])
    record.new_comparison(home, plan_variants(study), HOSTILE, HOSTILE)
    assert "<script" not in shown(handlers)["comparison_runs"]


def test_damaged_comparison_costs_nothing_else(home: Home, handlers: Handlers) -> None:
    comparison = created(home)
    folder = record.folder_of(home)
    (folder / "20990101-000000.json").write_text('{"trials": [{"method": 3}]}')
    assert shown(handlers)["comparison_id"]["value"] == comparison.id


@pytest.mark.skipif(not optimizer.is_installed(), reason="needs Optuna")
def test_search_says_how_many_runs_are_left(home: Home, handlers: Handlers) -> None:
    axes = {"learning_rate": ["1e-4..1e-2"]}
    search = Search.parse({**demo_fields(), "seed": NEVER_END}, ["lora"], axes, 5)
    comparison = record.new_comparison(home, (), search.question, "compare", search=search)
    conduct.start(home, comparison)
    html = shown(handlers)["comparison_runs"]
    assert "0 of 5 runs have ended. Optuna chooses each of the others" in html
    carried_on(home, conduct.stop(home, comparison))
    updates = shown(handlers)
    assert "4 were not begun: Continue begins them." in updates["comparison_runs"]
    assert updates["continue_comparison"]["visible"] is True


def test_deleted_comparison_gives_a_sentence(handlers: Handlers) -> None:
    updates = handlers.comparisons.on_stop_comparison(comparison_id="gone")
    assert "there is no comparison" in updates["comparison_message"]
