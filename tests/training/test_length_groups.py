"""The order of the rows: a step learns from the rows that it would have, laid with those of like length."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.training.loop.monitor import MonitorCallback
from core.training.trainers import length_groups as order
from core.training.trainers import stage_trainer as trainers
from core.training.trainers.length_groups import LengthGroupedSampler
from tests.builders.training_runs import lines_of, losses_of, train
from tests.training.test_stages import stage_run

pytestmark = pytest.mark.training
SPLIT: dict[str, object] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}


def sampler_of(lengths: list[int], rows_per_step: int, seed: int = 1) -> LengthGroupedSampler:
    from accelerate.data_loader import SeedableRandomSampler

    return LengthGroupedSampler(
        SeedableRandomSampler(lengths, data_seed=seed), lengths, rows_per_step
    )


def test_a_step_has_the_rows_that_were_drawn_for_it_the_longest_first() -> None:
    lengths = [7, 1, 9, 4, 4, 8, 2, 6, 3, 5]
    sampler = sampler_of(lengths, rows_per_step=4)
    drawn, found = list(sampler_of(lengths, rows_per_step=1)), list(sampler)
    assert found != drawn and len(sampler) == 10
    for step in range(0, 10, 4):
        assert sorted(found[step : step + 4]) == sorted(drawn[step : step + 4])
        at_once = [lengths[row] for row in found[step : step + 4]]
        assert at_once == sorted(at_once, reverse=True)


def test_every_epoch_has_an_order_of_its_own_that_can_be_had_again() -> None:
    sampler = sampler_of([5] * 40, rows_per_step=4)
    first, second = list(sampler), list(sampler)
    assert first != second and sorted(first) == sorted(second) == [*range(40)]
    sampler.set_epoch(1)
    assert list(sampler) == second


@pytest.mark.parametrize(
    "change", [{"gradient_accumulation_steps": 1}, {"per_device_train_batch_size": 1}, {}]
)
def test_where_nothing_could_be_padded_less_or_the_order_is_given_it_stays(
    change: dict[str, int],
) -> None:
    from datasets import Dataset
    from torch.utils.data import RandomSampler, SequentialSampler

    rows = Dataset.from_list([{"input_ids": [1, 2, 3]}])
    trainer = SimpleNamespace(args=SimpleNamespace(**SPLIT | change), train_dataset=rows)
    given: Any = RandomSampler(rows) if change else SequentialSampler(rows)
    assert order.group_by_length(given, trainer) is given


def padded_run(
    folder: Path, stage: str, monkeypatch: pytest.MonkeyPatch, **fields: object
) -> tuple[Path, int]:
    """(a trained run, the numbers in all of its inputs, padding included)."""
    sizes: list[int] = []
    with monkeypatch.context() as patched:
        step = trainers.MonitoredTrainer.training_step

        def measured(trainer: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            sizes.extend(value.numel() for name, value in inputs.items() if name.endswith("ids"))
            return step(trainer, model, inputs, *rest)

        patched.setattr(trainers.MonitoredTrainer, "training_step", measured)
        run = stage_run(folder, stage, max_steps=4, **SPLIT | fields)
        assert train(run) == 0
    return run, sum(sizes)


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("dpo", "reward"))]
)
def test_rows_of_like_length_teach_the_same_with_less_padding(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_run, less = padded_run(tmp_path / "sorted", stage, monkeypatch)
    monkeypatch.setattr(trainers, "group_by_length", lambda sampler, trainer: sampler)
    plain_run, more = padded_run(tmp_path / "plain", stage, monkeypatch)
    assert less < 0.95 * more
    found, wanted = lines_of(sorted_run), lines_of(plain_run)
    for name in ("num_tokens", "loss", "grad_norm"):
        assert [line[name] for line in found] == pytest.approx(
            [line[name] for line in wanted], rel=1e-4
        )


def test_a_run_that_was_stopped_in_a_later_epoch_goes_on_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = (
        stage_run(tmp_path / name, "sft", max_steps=8, **SPLIT) for name in ("whole", "halved")
    )
    assert train(whole) == 0
    with monkeypatch.context() as patched:
        end = MonitorCallback.on_step_end

        def stop_then(
            watch: MonitorCallback, args: Any, state: Any, *rest: Any, **named: Any
        ) -> None:
            if state.global_step == 6:  # of an epoch that has four
                (halved / "stop").touch()
            end(watch, args, state, *rest, **named)

        patched.setattr(MonitorCallback, "on_step_end", stop_then)
        assert train(halved) == 130
    (halved / "stop").unlink()
    assert train(halved) == 0
    assert losses_of(halved) == losses_of(whole)
