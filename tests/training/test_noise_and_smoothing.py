"""Test NEFTune and label smoothing in real runs, and smoothing against its definition."""

from pathlib import Path

import pytest

from tests.builders.paths import DEMO
from tests.builders.training_runs import (
    FINISHED,
    lines_of,
    losses_of,
    make_run,
    resume,
    stop_after,
    train,
    values_of,
)

STEPS = 4

pytestmark = pytest.mark.training


def settings(**fields: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "max_steps": STEPS,
        "max_length": 64,
        "lora_dropout": 0.0,
        "eval_dataset": "data/eval.jsonl",
        "eval_steps": STEPS,
        "learning_rate": 1e-6,
    }
    return plain | fields


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without noise and smoothing, hardly moving the weights."""
    run = make_run(tmp_path_factory.mktemp("plain") / "run", **settings())
    assert train(run) == FINISHED
    return run


def eval_losses(run: Path) -> list[float]:
    return [line["eval_loss"] for line in lines_of(run) if "eval_loss" in line]


def test_noise_changes_the_training_loss_and_no_evaluation(plain: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **settings(neftune_noise_alpha=200.0))
    assert train(run) == FINISHED
    assert losses_of(run)[1] > losses_of(plain)[1]
    assert eval_losses(run) == pytest.approx(eval_losses(plain), rel=1e-3)


def test_noise_goes_on_exactly_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = settings(neftune_noise_alpha=5.0, learning_rate=1e-3)
    whole = make_run(tmp_path / "whole", **fields)
    assert train(whole) == FINISHED
    parts = make_run(tmp_path / "parts", **fields)
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        train(parts)
    assert resume(parts) == FINISHED
    assert losses_of(parts) == losses_of(whole)


def test_smoothing_follows_its_definition() -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.trainer_pt_utils import LabelSmoother

    from core.training.loop.losses import IGNORED_LABEL
    from core.training.trainers.smoothing import advantage

    share = 0.1
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    ids = torch.arange(3, 27).reshape(2, 12)
    labels = ids.clone()
    labels[:, :4] = IGNORED_LABEL
    outputs = model(ids, output_hidden_states=True)
    expected = LabelSmoother(epsilon=share)(outputs, labels, shift_labels=True)
    plain_loss = LabelSmoother(epsilon=0.0)(outputs, labels, shift_labels=True)
    more = advantage(outputs.hidden_states[-1], labels, model)
    counted = labels[:, 1:] != IGNORED_LABEL
    assert (plain_loss + share * more.sum() / counted.sum()).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_smoothing_raises_the_training_loss_and_no_evaluation(plain: Path, tmp_path: Path) -> None:
    share = 0.2
    run = make_run(tmp_path / "run", **settings(label_smoothing_factor=share))
    assert train(run) == FINISHED
    assert losses_of(run)[1] > losses_of(plain)[1]
    assert eval_losses(run) == pytest.approx(eval_losses(plain), rel=1e-3)


def test_smoothing_holds_back_the_confidence_of_a_full_training(tmp_path: Path) -> None:
    fields = settings(method="full", learning_rate=1e-3, max_steps=3)
    sure = make_run(tmp_path / "sure", **fields)
    unsure = make_run(tmp_path / "unsure", **fields | {"label_smoothing_factor": 0.3})
    for run in (sure, unsure):
        assert train(run) == FINISHED
    assert values_of(unsure, "entropy")[-1] > values_of(sure, "entropy")[-1]
