"""Test that losses do not depend on the size of a batch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from core.training.loop.losses import EvalMeans, TokenTerm, perplexity
from tests.builders.training_runs import (
    FINISHED,
    lines_of,
    make_stage_run,
    train,
    write_eval_rows,
    write_rows,
)

LENGTHS = (1, 17, 3, 2, 29, 5)
"""Words of the answers of the rows: six rows of very different lengths."""
BATCHES: Mapping[str, tuple[int, int]] = {"all": (6, 1), "uneven": (4, 2), "single": (1, 6)}
"""Name -> (rows at once, passes); each makes one step of the six rows."""

pytestmark = pytest.mark.training


def _rows(kind: str, first_word: str) -> list[dict[str, Any]]:
    rows = []
    for number, length in enumerate(LENGTHS):
        question, answer = f"{first_word} {number}?", f"{number} is " + "so " * length
        if kind == "pairs":
            rows.append({"prompt": question, "chosen": answer, "rejected": f"no {number}"})
        else:
            rows.append({"prompt": question, "completion": answer})
    return rows


def _losses(folder: Path, stage: str, batch: str, **fields: object) -> tuple[float, float, Any]:
    """Train one tiny step; return its loss, eval_loss and eval_perplexity."""
    rows, passes = BATCHES[batch]
    run = make_stage_run(
        folder / batch,
        stage,
        method="full",
        max_steps=1,
        shuffle=False,
        learning_rate=1e-9,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        eval_dataset="data/eval.jsonl",
        **fields,
    )
    kind = "completions" if stage == "sft" else "pairs"
    write_rows(run, *_rows(kind, "What"))
    write_eval_rows(run, *_rows(kind, "Who"))
    assert train(run) == FINISHED
    evaluated = next(line for line in lines_of(run) if "eval_loss" in line)
    trained = next(line for line in lines_of(run) if "loss" in line)
    return trained["loss"], evaluated["eval_loss"], evaluated.get("eval_perplexity")


def _assert_same_losses(
    folder: Path, stage: str, batches: tuple[str, ...] = ("uneven", "single"), **fields: object
) -> None:
    wanted = _losses(folder, stage, "all", **fields)
    for batch in batches:
        found = _losses(folder, stage, batch, **fields)
        assert found[0] == pytest.approx(wanted[0], rel=1e-4)
        assert found[1] == pytest.approx(wanted[1], rel=1e-4)


def test_losses_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    _assert_same_losses(tmp_path, "sft", ("single",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "loss_type"),
    [
        ("sft", "default"),
        ("orpo", "default"),
        ("dpo", "sigmoid"),
        ("dpo", "sigmoid+sft"),
        ("cpo", "sigmoid"),
        ("cpo", "simpo"),
        ("reward", "default"),
    ],
)
def test_losses_of_stages_do_not_depend_on_the_batch(
    tmp_path: Path, stage: str, loss_type: str
) -> None:
    _assert_same_losses(tmp_path, stage, loss_type=loss_type)


@pytest.mark.slow
def test_the_evaluation_loss_of_kto_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Its loss compares the rows of a batch, so an evaluation takes always as many."""
    wanted, found = (_losses(tmp_path, "kto", batch)[1] for batch in ("all", "uneven"))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_perplexity_stands_beside_the_evaluation_loss(tmp_path: Path) -> None:
    _loss, eval_loss, found = _losses(tmp_path, "sft", "all")
    assert found == pytest.approx(math.exp(eval_loss))


def test_evaluation_loss_weights_batches_by_their_tokens() -> None:
    means = EvalMeans(averages_tokens=True)
    means.add(torch.tensor(2.0), {"labels": torch.tensor([[-100, 1, 1, 1]])})
    means.add(torch.tensor(6.0), {"labels": torch.tensor([[7, 1, -100, -100]])})
    assert means.mean() == pytest.approx((3 * 2.0 + 6.0) / 4)


def test_a_batch_without_counted_tokens_says_nothing() -> None:
    means = EvalMeans(averages_tokens=True)
    means.add(torch.tensor(2.0), {"labels": torch.tensor([[1, 1]])})
    means.add(torch.tensor(math.nan), {"labels": torch.tensor([[1, -100]])})
    assert means.mean() == 2.0


def test_a_term_over_tokens_is_weighted_by_tokens_and_the_rest_by_rows() -> None:
    means = EvalMeans(averages_tokens=False)
    one_row, three_rows = {"input_ids": torch.zeros(1, 4)}, {"input_ids": torch.zeros(3, 4)}
    means.add(torch.tensor(1.0 + 0.5 * 8.0), one_row, TokenTerm(torch.tensor(8.0), 30, 0.5))
    means.add(torch.tensor(5.0 + 0.5 * 4.0), three_rows, TokenTerm(torch.tensor(4.0), 10, 0.5))
    assert means.mean() == pytest.approx((1.0 + 3 * 5.0) / 4 + 0.5 * (30 * 8.0 + 10 * 4.0) / 40)


def test_metrics_of_batches_are_weighted_as_the_loss() -> None:
    means = EvalMeans(averages_tokens=False)
    for size in (1, 3):
        means.add(torch.tensor(0.0), {"input_ids": torch.zeros(size, 4)})
    metrics = {"rewards/accuracies": [0.0, 1.0], "num_tokens": [12]}
    means.average(metrics)
    assert metrics == {"rewards/accuracies": [0.75], "num_tokens": [12]}


def test_the_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert perplexity(1e4) == math.inf
