"""Warm-up: the learning rate rises from 0, and at least one step of a run learns."""

from pathlib import Path

import pytest

from core.training.contract.failures import UnusableJob
from core.training.contract.job import Job
from tests.builders.paths import DEMO
from tests.builders.training_runs import (
    FINISHED,
    load_result,
    make_run,
    train,
    values_of,
    write_rows,
)

NUM_ROWS = 3

pytestmark = pytest.mark.training


def test_a_run_of_one_step_changes_the_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = make_run(tmp_path / "run", method="full", max_steps=-1, num_train_epochs=1)
    write_rows(run, *(DEMO / "data.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_ROWS])
    assert train(run) == FINISHED
    (learning_rate,) = values_of(run, "learning_rate")
    assert learning_rate > 0
    before = AutoModelForCausalLM.from_pretrained(DEMO / "model").get_input_embeddings().weight
    assert not before.equal(load_result(run).get_input_embeddings().weight)


def test_warm_up_of_all_steps_leaves_the_last_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=3, warmup_ratio=1.0, learning_rate=1e-3)
    assert train(run) == FINISHED
    assert values_of(run, "learning_rate") == pytest.approx([0, 0.5e-3, 1e-3])


def test_a_job_file_without_steps_is_refused() -> None:
    with pytest.raises(UnusableJob, match="max_steps is 0"):
        Job.from_json({"model": "demo", "dataset": "rows.jsonl", "max_steps": 0})
