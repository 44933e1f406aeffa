"""Checkpoints on the Runs tab: listed with the best, published, undone; more epochs of a run."""

import json
from pathlib import Path

import pytest

from core import runs
from core.runs import Home, Run
from core.training.contract.files import write_json
from tests.builders.checkpoints import WEIGHTS, add_checkpoint, add_result
from tests.builders.fake_runs import FINISHED, NewRun, write_metrics
from tests.builders.page import looking_at
from ui.handlers import Handlers

BEST_STEP, LAST_STEP = 10, 20


@pytest.fixture
def run(home: Home, new_run: NewRun) -> Run:
    """Make a finished run with two checkpoints, the first of which is the best."""
    folder: Path = new_run().folder
    write_json(folder / "status.json", {**FINISHED, "epoch": 2.0, "num_train_epochs": 2.0})
    for step, loss in ((BEST_STEP, 0.5), (LAST_STEP, 0.75)):
        add_checkpoint(folder, step)
        write_metrics(folder, range(step, step + 1), eval_loss=loss)
    add_result(folder, LAST_STEP)
    return runs.read(home, folder.name)


def test_checkpoints_are_listed_with_best_and_result(handlers: Handlers, run: Run) -> None:
    shown = handlers.runs.on_view(**looking_at(run.id))
    table = shown["checkpoints"]
    assert f'data-publish="{BEST_STEP}"' in table
    assert f'data-publish="{LAST_STEP}"' not in table
    assert "★ best" in table
    assert "original" not in table
    assert f"Best at step {BEST_STEP}: eval_loss 0.5" in shown["run_header"]


def test_the_best_step_is_marked_in_the_plot(handlers: Handlers, run: Run) -> None:
    shown = handlers.runs.on_view(**looking_at(run.id))
    lines = json.loads(str(shown["figures"]))["loss"]["data"]
    (mark,) = [line for line in lines if line["name"] == f"best at step {BEST_STEP}"]
    assert (mark["x"], mark["y"]) == ([BEST_STEP], [0.5])


def test_a_checkpoint_is_published_and_undone(handlers: Handlers, run: Run) -> None:
    view = looking_at(run.id)
    weights = run.folder / "output" / WEIGHTS
    shown = handlers.results.on_publish(str(BEST_STEP), **view)
    assert weights.read_bytes() == b"weights of step %d" % BEST_STEP
    assert f"The result is the checkpoint of step {BEST_STEP}" in shown["run_message"]
    assert 'data-publish="original"' in shown["checkpoints"]
    assert shown["published_step"] == ""
    shown = handlers.results.on_publish("original", **view)
    assert weights.read_bytes() == b"result of the training"
    assert "original" not in shown["checkpoints"]


@pytest.mark.parametrize("step", ["", "-1", "../../etc", "1" * 50, "٣"])
def test_a_made_up_step_publishes_nothing(handlers: Handlers, run: Run, step: str) -> None:
    handlers.results.on_publish(step, **looking_at(run.id))
    assert (run.folder / "output" / WEIGHTS).read_bytes() == b"result of the training"


def test_more_epochs_start_a_run_that_is_shown(handlers: Handlers, run: Run) -> None:
    shown = handlers.results.on_continue(2, **looking_at(run.id))
    new = runs.read(handlers.home, str(shown["run_id"]))
    assert new.job.lr_restart_step == LAST_STEP
    assert new.job.num_train_epochs == 4
    assert f"from step {LAST_STEP} to step {2 * LAST_STEP}" in shown["run_message"]
    assert (new.folder / "checkpoints" / f"checkpoint-{LAST_STEP}" / WEIGHTS).exists()


@pytest.mark.parametrize("epochs", [None, 0, -3, float("nan")])
def test_no_number_of_epochs_starts_nothing(
    handlers: Handlers, run: Run, epochs: float | None
) -> None:
    shown = handlers.results.on_continue(epochs, **looking_at(run.id))
    assert "not a number of epochs" in shown["run_message"]
    assert len(runs.listing.list_runs(handlers.home)) == 1


def test_without_its_last_state_a_run_offers_no_more_epochs(handlers: Handlers, run: Run) -> None:
    shown = handlers.runs.on_view(**looking_at(run.id))
    assert shown["continue_run"]["visible"]
    (run.folder / "checkpoints" / f"checkpoint-{LAST_STEP}" / "manifest.json").unlink()
    shown = handlers.runs.on_view(**looking_at(run.id))
    assert not shown["continue_run"]["visible"]
