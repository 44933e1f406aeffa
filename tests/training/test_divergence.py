"""Detection of trainings that have diverged, by numbers alone and in real trainings."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    checkpoint_steps,
    error_of,
    lines_of,
    make_run,
    status_of,
    train,
)

pytestmark = pytest.mark.training
GOOD = (2.0, 1.0)
"""Loss and gradient norm of a normal step."""
RUIN_STEP, LAST_GOOD_CHECKPOINT = 5, 4
STEPS_TO_NOTICE = 4


def diagnosis_of(steps: list[tuple[float, float]], **settings: bool) -> str:
    """Return the diagnosis of steps (loss, gradient norm)."""
    from core.training.loop.divergence import DivergenceMonitor, StepStats

    monitor = DivergenceMonitor(**settings)
    for number, (loss, grad_norm) in enumerate(steps, start=1):
        monitor.add(StepStats(number, loss, grad_norm))
    return monitor.diagnosis()


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (
            [GOOD, (math.nan, 1.0), (math.nan, 1.0), (math.nan, 1.0)],
            "from step 2 on the loss is not a number",
        ),
        (
            [GOOD] + [(0.0, math.nan)] * 3,
            "from step 2 on the gradient is not a number, while the loss is 0",
        ),
        ([(2.0, 0.0)] * 5, "from step 1 on there is no gradient"),
        ([GOOD] * 10 + [(30.0, 9.0)] * 10, "from step 11 on the loss is above 12; it began at 2"),
    ],
    ids=["loss", "overflow", "no gradient", "explosion"],
)
def test_a_training_that_has_diverged_is_diagnosed(
    steps: list[tuple[float, float]], words: str
) -> None:
    assert diagnosis_of(steps).startswith(words)


@pytest.mark.parametrize(
    "steps",
    [
        [GOOD] * 30,
        [GOOD, (math.inf, 1.0), (math.inf, 1.0), GOOD],
        [(2.0, 0.0)] * 4 + [GOOD],
        [GOOD] * 10 + [(9.0, 9.0)] * 50,
        [(0.1, 1.0)] * 10 + [(3.0, 9.0)] * 50,
    ],
    ids=["good", "two bad losses", "four zero gradients", "rise below 10", "rise from near 0"],
)
def test_a_training_that_may_recover_is_left_alone(steps: list[tuple[float, float]]) -> None:
    assert diagnosis_of(steps) == ""


@pytest.mark.parametrize(("num_steps", "is_normal"), [(17, True), (20, False)])
def test_a_gradient_scaler_may_skip_its_first_steps(num_steps: int, is_normal: bool) -> None:
    overflows = [(2.0, math.inf)] * num_steps
    assert (diagnosis_of(overflows, has_scaler=True) == "") == is_normal


@pytest.mark.parametrize(("num_steps", "is_normal"), [(40, True), (50, False)])
def test_generated_answers_may_all_be_equally_good(num_steps: int, is_normal: bool) -> None:
    no_gradient = [(0.0, 0.0)] * num_steps
    assert (diagnosis_of(no_gradient, generates=True) == "") == is_normal


def test_numbers_of_a_step_are_read_after_the_next_one() -> None:
    import torch

    from core.training.loop.divergence import DivergenceMonitor

    monitor = DivergenceMonitor()
    for step in (1, 2):
        monitor.begin_step()
        monitor.add_loss(torch.tensor(1.5))
        monitor.add_loss(torch.tensor(0.5))
        monitor.set_grad_norm(torch.tensor(3.0))
        monitor.receive()
        assert monitor.first_loss == (0.0 if step == 1 else 2.0)
        monitor.end_step(step)


@pytest.mark.parametrize("bad", [[1.0, math.nan], [-math.inf]])
def test_one_element_that_is_not_finite_is_found(bad: list[float]) -> None:
    import torch

    from core.training.loop.divergence import are_finite

    assert not are_finite([torch.ones(3), torch.tensor(bad)])


def test_finite_and_empty_tensors_are_finite() -> None:
    import torch

    from core.training.loop.divergence import are_finite

    assert are_finite([torch.ones(3), torch.tensor([-2.0], dtype=torch.bfloat16), torch.empty(0)])
    assert are_finite([])


# Real trainings


def ruin_weights_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ruin the weights as a step with a far too high learning rate would."""
    from core.training.loop.monitor import MonitorCallback

    on_step_end = MonitorCallback.on_step_end

    def ruin_and_end(monitor: MonitorCallback, args: Any, state: Any, *rest: Any, **named: Any):
        if state.global_step == step and monitor.trainer:
            for parameter in monitor.trainer.model.parameters():
                parameter.data.fill_(math.nan)
        on_step_end(monitor, args, state, *rest, **named)

    monkeypatch.setattr(MonitorCallback, "on_step_end", ruin_and_end)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that diverges."""
    folder = tmp_path_factory.mktemp("diverged")
    run = make_run(folder / "run", method="full", max_steps=50, save_steps=2)
    with pytest.MonkeyPatch.context() as patched:
        ruin_weights_after(RUIN_STEP, patched)
        assert train(run) == FAILED
    return run


def test_a_run_that_has_diverged_ends_within_a_few_steps(diverged: Path) -> None:
    assert status_of(diverged)["step"] <= RUIN_STEP + STEPS_TO_NOTICE


def test_a_run_that_has_diverged_says_what_is_wrong(diverged: Path) -> None:
    status = status_of(diverged)
    expected = "from step 6 on the loss is not a number. The checkpoint of step 4 is good."
    assert (status["state"], status["cause"]) == ("failed", "diverged")
    assert expected in status["error"]


def test_a_run_that_has_diverged_keeps_its_last_good_checkpoint(diverged: Path) -> None:
    assert status_of(diverged)["checkpoint_step"] == LAST_GOOD_CHECKPOINT
    assert max(checkpoint_steps(diverged)) == LAST_GOOD_CHECKPOINT


def test_the_metrics_show_how_the_run_diverged(diverged: Path) -> None:
    assert lines_of(diverged)[-1]["step"] > RUIN_STEP + 1


def test_a_run_that_may_diverge_continues_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"method": "full", "max_steps": 4, "save_steps": 2, "stop_when_diverged": False}
    run = make_run(tmp_path / "run", **fields)
    ruin_weights_after(3, monkeypatch)
    assert train(run) == FINISHED
    status = status_of(run)
    warning = "No checkpoint is kept of step 4: its weights are no longer finite."
    assert status["warning"] == warning
    assert status["checkpoint_step"] == 2


def test_a_run_without_a_gradient_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    compute_loss = SFTTrainer.compute_loss

    def compute_nothing(*args: Any, **kwargs: Any) -> Any:
        return compute_loss(*args, **kwargs) * 0

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_nothing)
    run = make_run(tmp_path / "run", max_steps=50)
    assert "there is no gradient" in error_of(run)
    assert status_of(run)["step"] <= 6
