"""Order of the training rows: each step keeps its rows, sorted by length."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.training.trainers import length_groups, stage_trainer
from core.training.trainers.length_groups import LengthGroupedSampler
from tests.builders.training_runs import (
    FINISHED,
    losses_of,
    make_stage_run,
    train,
    train_in_two_parts,
    values_of,
)

pytestmark = pytest.mark.training
MICRO_BATCHES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
LENGTHS = [7, 1, 9, 4, 4, 8, 2, 6, 3, 5]


def make_sampler(lengths: list[int], rows_per_step: int) -> LengthGroupedSampler:
    from accelerate.data_loader import SeedableRandomSampler

    random_order = SeedableRandomSampler(lengths, data_seed=1)
    return LengthGroupedSampler(random_order, lengths, rows_per_step)


def steps_of(order: list[int]) -> list[list[int]]:
    return [order[begin : begin + 4] for begin in range(0, len(order), 4)]


def test_a_step_keeps_its_rows() -> None:
    unsorted_order = list(make_sampler(LENGTHS, rows_per_step=1))
    order = list(make_sampler(LENGTHS, rows_per_step=4))
    assert order != unsorted_order
    assert [set(step) for step in steps_of(order)] == [
        set(step) for step in steps_of(unsorted_order)
    ]


def test_a_step_begins_with_its_longest_row() -> None:
    for step in steps_of(list(make_sampler(LENGTHS, rows_per_step=4))):
        lengths = [LENGTHS[row] for row in step]
        assert lengths == sorted(lengths, reverse=True)


def test_an_epoch_has_every_row() -> None:
    sampler = make_sampler([5] * 40, rows_per_step=4)
    assert len(sampler) == 40
    assert sorted(sampler) == list(range(40))


def test_every_epoch_has_its_own_order_that_can_be_repeated() -> None:
    sampler = make_sampler([5] * 40, rows_per_step=4)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(1)
    assert list(sampler) == second


@pytest.mark.parametrize(
    "name", ["gradient_accumulation_steps", "per_device_train_batch_size"], ids=str
)
def test_a_step_of_a_single_micro_batch_is_not_sorted(name: str) -> None:
    from torch.utils.data import RandomSampler

    trainer: Any = trainer_of(MICRO_BATCHES | {name: 1})
    sampler = RandomSampler(trainer.train_dataset)
    assert length_groups.group_by_length(sampler, trainer) is sampler


def test_the_order_of_the_file_is_not_changed() -> None:
    from torch.utils.data import SequentialSampler

    trainer: Any = trainer_of(MICRO_BATCHES)
    sampler = SequentialSampler(trainer.train_dataset)
    assert length_groups.group_by_length(sampler, trainer) is sampler


def trainer_of(args: dict[str, int]) -> SimpleNamespace:
    """Return what group_by_length reads of a trainer."""
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [1, 2, 3]}])
    return SimpleNamespace(args=SimpleNamespace(**args), train_dataset=rows)


@pytest.mark.parametrize(
    "stage",
    [
        "sft",
        pytest.param("dpo", marks=pytest.mark.slow),
        pytest.param("reward", marks=pytest.mark.slow),
    ],
)
def test_sorted_rows_train_the_same_with_less_padding(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped, grouped_size = train_measured(tmp_path / "grouped", stage, monkeypatch)
    monkeypatch.setattr(stage_trainer, "group_by_length", lambda sampler, trainer: sampler)
    plain, plain_size = train_measured(tmp_path / "plain", stage, monkeypatch)
    assert grouped_size < 0.95 * plain_size
    for name in ("num_tokens", "loss", "grad_norm"):
        assert values_of(grouped, name) == pytest.approx(values_of(plain, name), rel=1e-4)


def train_measured(folder: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    """Train a run; return its folder and the size of all its inputs, padding included."""
    sizes: list[int] = []
    training_step = stage_trainer.MonitoredTrainer.training_step

    def measure_and_step(trainer: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        sizes.extend(value.numel() for name, value in inputs.items() if name.endswith("ids"))
        return training_step(trainer, model, inputs, *rest)

    run = make_stage_run(folder, stage, max_steps=4, **MICRO_BATCHES)
    with monkeypatch.context() as patched:
        patched.setattr(stage_trainer.MonitoredTrainer, "training_step", measure_and_step)
        assert train(run) == FINISHED
    return run, sum(sizes)


def test_a_run_resumed_in_a_later_epoch_sees_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_stage_run(tmp_path / "whole", "sft", max_steps=8, **MICRO_BATCHES)
    halved = make_stage_run(tmp_path / "halved", "sft", max_steps=8, **MICRO_BATCHES)
    assert train(whole) == FINISHED
    train_in_two_parts(halved, 5, monkeypatch)  # an epoch has four steps
    assert losses_of(halved) == losses_of(whole)
