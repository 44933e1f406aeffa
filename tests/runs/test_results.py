"""Results of a run: publish a checkpoint, undo it, and train a finished run for more epochs."""

import json
import shutil
from pathlib import Path

import pytest

from core.job import SpecError
from core.runs import Home, read, results
from core.runs.listing import list_runs
from tests.builders.training_runs import (
    FINISHED,
    change_job,
    checkpoint_steps,
    losses_of,
    make_run,
    train,
    values_of,
)

pytestmark = pytest.mark.training
EPOCHS, MORE_EPOCHS = 2, 1
NUM_ROWS, BATCH_SIZE = 12, 4
STEPS_PER_EPOCH = NUM_ROWS // BATCH_SIZE
LAST_STEP = EPOCHS * STEPS_PER_EPOCH


def train_epochs(folder: Path, epochs: int, **fields: object) -> Path:
    run = make_run(
        folder,
        max_steps=-1,
        num_train_epochs=epochs,
        max_length=64,
        save_total_limit=3,
        warmup_steps=1,
        **fields,
    )
    rows = (run / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "data" / "train.jsonl").write_text("".join(rows[:NUM_ROWS]), encoding="utf-8")
    assert train(run) == FINISHED
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of two epochs, with a checkpoint after each."""
    return train_epochs(tmp_path_factory.mktemp("trained") / "run", EPOCHS)


@pytest.fixture
def run_id(trained: Path, home: Home) -> str:
    """Copy the trained run into a home."""
    shutil.copytree(trained, home.runs / "run")
    return "run"


def weights_in(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_published_checkpoint_is_the_result_until_it_is_undone(home: Home, run_id: str) -> None:
    folder = home.runs / run_id
    trained_weights = weights_in(folder / "output")
    run = results.publish(home, run_id, STEPS_PER_EPOCH)
    assert run.result_step == STEPS_PER_EPOCH
    published = weights_in(folder / "output")
    assert published == weights_in(folder / "checkpoints" / f"checkpoint-{STEPS_PER_EPOCH}")
    assert published != trained_weights
    assert not (folder / "output" / "optimizer.pt").exists()
    again = results.publish(home, run_id, LAST_STEP)
    assert again.result_step == LAST_STEP
    undone = results.publish_original(home, run_id)
    assert undone.result_step == LAST_STEP
    assert weights_in(folder / "output") == trained_weights
    assert not results.has_original(undone)


def test_the_list_of_checkpoints_marks_the_result(home: Home, run_id: str) -> None:
    results.publish(home, run_id, STEPS_PER_EPOCH)
    listed = results.checkpoints_of(read(home, run_id))
    assert [(each.step, each.is_result) for each in listed] == [
        (STEPS_PER_EPOCH, True),
        (LAST_STEP, False),
    ]


def test_a_step_without_a_checkpoint_is_named_with_those_there_are(home: Home, run_id: str) -> None:
    with pytest.raises(SpecError, match=f"of step 1; it has those of steps {STEPS_PER_EPOCH}, "):
        results.publish(home, run_id, 1)
    with pytest.raises(SpecError, match="nothing to undo"):
        results.publish_original(home, run_id)


def test_a_damaged_checkpoint_never_becomes_the_result(home: Home, run_id: str) -> None:
    folder = home.runs / run_id
    damaged = folder / "checkpoints" / f"checkpoint-{STEPS_PER_EPOCH}"
    before = weights_in(folder / "output")
    (damaged / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(SpecError, match="is not as it was written"):
        results.publish(home, run_id, STEPS_PER_EPOCH)
    assert weights_in(folder / "output") == before
    assert not list(folder.glob(".output*"))


def test_more_epochs_equal_one_run_with_a_second_schedule(
    home: Home, run_id: str, tmp_path: Path
) -> None:
    plan = results.plan_continuation(read(home, run_id), MORE_EPOCHS)
    end = LAST_STEP + MORE_EPOCHS * STEPS_PER_EPOCH
    assert f"from step {LAST_STEP} to step {end}" in plan.sentence
    assert f"from 0 to 0.003 by step {LAST_STEP + 1}, then falls (cosine) to 0" in plan.sentence
    new = results.create_continuation(home, plan)
    assert train(new.folder) == FINISHED
    whole = train_epochs(tmp_path / "whole", EPOCHS + MORE_EPOCHS, lr_restart_step=LAST_STEP)
    expected = {step: loss for step, loss in losses_of(whole).items() if step > LAST_STEP}
    assert losses_of(new.folder) == expected
    rates = values_of(whole, "learning_rate")
    assert values_of(new.folder, "learning_rate") == rates[LAST_STEP:]
    assert weights_in(new.folder / "output") == weights_in(whole / "output")


def test_a_continued_run_leaves_the_first_as_it_was(home: Home, run_id: str) -> None:
    first = home.runs / run_id
    manifest = first / "checkpoints" / f"checkpoint-{LAST_STEP}" / "manifest.json"
    before = manifest.read_text(encoding="utf-8")
    new = results.create_continuation(
        home, results.plan_continuation(read(home, run_id), MORE_EPOCHS)
    )
    assert manifest.read_text(encoding="utf-8") == before
    assert checkpoint_steps(new.folder) == [LAST_STEP]
    assert run_id in json.loads((new.folder / "about.json").read_text())["notes"]
    assert len(list_runs(home)) == 2


def test_a_run_by_steps_continues_by_steps(home: Home, run_id: str) -> None:
    change_job(home.runs / run_id, max_steps=LAST_STEP)
    plan = results.plan_continuation(read(home, run_id), 0.5)
    assert plan.job.max_steps == LAST_STEP + round(0.5 * STEPS_PER_EPOCH)


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), 1e9])
def test_a_number_of_epochs_that_makes_no_sense_is_refused(
    home: Home, run_id: str, epochs: float
) -> None:
    with pytest.raises(SpecError, match="not a number of epochs"):
        results.plan_continuation(read(home, run_id), epochs)


def test_a_run_without_its_last_state_cannot_continue(home: Home, run_id: str) -> None:
    shutil.rmtree(home.runs / run_id / "checkpoints" / f"checkpoint-{LAST_STEP}")
    with pytest.raises(SpecError, match="no checkpoint of its last step"):
        results.plan_continuation(read(home, run_id), MORE_EPOCHS)
