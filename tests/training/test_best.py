"""Best evaluation: it is kept, becomes the result, survives a resume, and may end a run early."""

from pathlib import Path
from typing import Any

import pytest

from core.runs.checks import find_suite, folders_of
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import to_lines
from core.training.loop.best import BestEvaluation
from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    change_job,
    checkpoint_steps,
    error_of,
    job_of,
    lines_of,
    losses_of,
    make_run,
    status_of,
    train,
    train_again,
    train_in_two_parts,
)

training = pytest.mark.training
NUM_STEPS = 10
OVERFITTING: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "max_length": 64,
    "eval_dataset": "data/eval.jsonl",
    "eval_steps": 2,
    "save_steps": 5,
    "save_total_limit": 1,
    "learning_rate": 0.05,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "constant",
    "lora_dropout": 0.0,
}
"""Settings with which the evaluation soon gets worse."""


def record(*values: float | None, **fields: Any) -> BestEvaluation:
    """Return the record of a job after evaluations at steps 10, 20 and so on."""
    best = BestEvaluation.of(job_of(**fields))
    for number, value in enumerate(values, start=1):
        best.add(10 * number, value)
    return best


def test_the_first_of_equal_evaluations_is_the_best() -> None:
    best = record(2.0, 1.0, 1.0, 1.5)
    assert (best.step, best.value) == (20, 1.0)


def test_of_rewards_more_is_better() -> None:
    assert record(0.1, 0.3, 0.2, stage="grpo").step == 20


def test_of_tests_that_pass_more_is_better() -> None:
    best = record(70.0, 90.0, 90.0, 80.0, keep_best="identity", early_stopping_patience=2)
    assert (best.metric, best.step) == ("check_identity", 20)
    assert best.is_in_vain
    assert best.sentence(40) == (
        "Ended early at step 40: the last 2 checks did not improve identity. "
        "The best is 90 %, at step 20."
    )


def test_the_model_before_the_training_is_never_the_best() -> None:
    best = record(keep_best="identity")
    best.add_rows([{"step": 0, "check_identity": 99.0}, {"step": 10, "check_identity": 98.0}])
    assert best.step == 10


def test_an_evaluation_that_is_no_number_is_never_best() -> None:
    assert record(None, 3.0, None).step == 20


def test_patience_counts_evaluations_in_a_row() -> None:
    assert not record(2.0, 2.1, 1.9, 2.0, early_stopping_patience=2).is_in_vain
    assert record(2.0, 2.1, 2.2, early_stopping_patience=2).is_in_vain


def test_a_small_improvement_does_not_renew_the_patience() -> None:
    fields = {"early_stopping_patience": 2, "early_stopping_threshold": 0.5}
    best = record(2.0, 1.9, 1.8, **fields)
    assert best.is_in_vain
    assert best.step == 30


def test_rows_of_the_metrics_give_the_same_record() -> None:
    rows = [{"step": 10, "eval_loss": 2.0}, {"step": 11, "loss": 1.0}]
    rows.append({"step": 20, "nonfinite": ["eval_loss"]})
    best = record(early_stopping_patience=1)
    best.add_rows(rows)
    assert best == record(2.0, None, early_stopping_patience=1)


def eval_losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in lines_of(run) if "eval_loss" in line}


def weights_in(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run whose best evaluation is not its last."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    run = make_run(folder, **OVERFITTING, keep_best="eval_loss")
    assert train(run) == FINISHED
    return run


@training
def test_the_best_checkpoint_outlives_those_that_follow(kept: Path) -> None:
    losses = eval_losses(kept)
    best_step = min(losses, key=losses.__getitem__)
    assert best_step < NUM_STEPS - 1
    assert checkpoint_steps(kept) == [best_step, NUM_STEPS]
    status = status_of(kept)
    assert (status["best_step"], status["result_step"]) == (best_step, best_step)
    assert status["best_value"] == losses[best_step]
    assert status["step"] == NUM_STEPS


@training
def test_the_best_checkpoint_becomes_the_result(kept: Path) -> None:
    best_step = status_of(kept)["best_step"]
    best = weights_in(kept / "checkpoints" / f"checkpoint-{best_step}")
    assert weights_in(kept / "output") == best
    assert weights_in(kept / "checkpoints" / f"checkpoint-{NUM_STEPS}") != best


@training
def test_a_resumed_run_keeps_the_same_best(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", **OVERFITTING, keep_best="eval_loss")
    train_in_two_parts(run, 6, monkeypatch)
    assert eval_losses(run) == eval_losses(kept)
    assert status_of(run)["best_step"] == status_of(kept)["best_step"]
    assert weights_in(run / "output") == weights_in(kept / "output")


@training
def test_a_run_ends_early_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training.loop.saver import Saver

    run = make_run(tmp_path / "run", **OVERFITTING, early_stopping_patience=1)

    def fail(*_arguments: object) -> None:
        raise RuntimeError("the program was ended here")

    with monkeypatch.context() as patched:
        patched.setattr(Saver, "save_result", fail)
        assert train(run) == FAILED
    last_step = max(losses_of(run))
    assert last_step < NUM_STEPS
    assert train_again(run) == FINISHED
    assert max(losses_of(run)) == last_step
    status = status_of(run)
    assert (status["state"], status["step"]) == ("finished", last_step)
    assert status["ended_early"].startswith(f"Ended early at step {last_step}: ")
    assert (run / "output" / "adapter_model.safetensors").exists()


FEW_TESTS = 6
CHECKED: dict[str, Any] = {
    **OVERFITTING,
    "eval_dataset": "",
    "check_steps": 2,
    "check_suites": "few.jsonl",
    "keep_best": "few",
}
"""Settings with which the model soon forgets what the suite asks."""


def make_checked_run(folder: Path, **fields: Any) -> Path:
    run = make_run(folder, **CHECKED, **fields)
    tests = find_suite("capabilities", folders_of(True)).tests[:FEW_TESTS]
    (run / "few.jsonl").write_text(to_lines(Suite("few", tests)), encoding="utf-8")
    return run


def shares(run: Path) -> dict[int, float]:
    return {line["step"]: line["check_few"] for line in lines_of(run) if "check_few" in line}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of which a suite says what is best."""
    run = make_checked_run(tmp_path_factory.mktemp("checked") / "run")
    assert train(run) == FINISHED
    return run


@training
def test_a_suite_says_which_checkpoint_is_the_result(checked: Path) -> None:
    found = shares(checked)
    assert sorted(found) == [0, *range(2, NUM_STEPS + 1, 2)]
    best_step = max(sorted(found)[1:], key=found.__getitem__)
    assert best_step < NUM_STEPS
    assert checkpoint_steps(checked) == [best_step, NUM_STEPS]
    status = status_of(checked)
    assert (status["best_step"], status["result_step"]) == (best_step, best_step)
    assert (status["best_metric"], status["best_value"]) == ("check_few", found[best_step])
    best = weights_in(checked / "checkpoints" / f"checkpoint-{best_step}")
    assert weights_in(checked / "output") == best


@training
def test_a_stop_before_a_check_does_not_change_the_best(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_checked_run(tmp_path / "run")
    train_in_two_parts(run, 3, monkeypatch)  # ends after step 4, before its check
    assert shares(run) == shares(checked)
    assert weights_in(run / "output") == weights_in(checked / "output")


@training
@pytest.mark.slow
def test_checks_that_are_in_vain_end_a_run(tmp_path: Path) -> None:
    run = make_checked_run(tmp_path / "run", early_stopping_patience=1)
    assert train(run) == FINISHED
    status = status_of(run)
    assert status["step"] < NUM_STEPS
    assert status["ended_early"].startswith("Ended early at step")
    assert "the last check did not improve few" in status["ended_early"]


@training
def test_a_suite_that_is_not_asked_is_named(tmp_path: Path) -> None:
    run = make_checked_run(tmp_path / "run")
    change_job(run, keep_best="another")
    assert "keep_best: no suite another is among check_suites" in error_of(run)
