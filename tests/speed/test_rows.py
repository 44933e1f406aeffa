"""Padding, steps, hours and money: what the number and the length of the rows mean for a
forecast."""

import random
from dataclasses import replace

import pytest

from core.job import JobSpec
from core.models import gpus
from core.speed import RowStatistics
from core.speed.rows import MicroBatch, micro_batch
from tests.builders.forecasts import predict


def test_without_the_number_of_rows_there_are_no_hours() -> None:
    speed = predict()
    assert (speed.num_steps, speed.hours, speed.usd) == (None, None, None)


def test_max_steps_decide_without_rows() -> None:
    speed = predict(max_steps=100)
    assert speed.num_steps == 100
    assert speed.hours == pytest.approx(100 * speed.seconds_per_step / 3600)


@pytest.mark.parametrize(
    ("held_out", "steps_per_epoch"),
    [
        ({"eval_fraction": 0.1}, 57),  # ceil(900 / 16)
        ({"eval_dataset": "other.jsonl"}, 63),  # ceil(1000 / 16)
    ],
)
def test_epochs_count_the_rows_that_are_not_held_out(
    held_out: dict[str, object], steps_per_epoch: int
) -> None:
    speed = predict(rows=RowStatistics(1000), num_train_epochs=2, **held_out)
    assert speed.num_steps == 2 * steps_per_epoch


def test_packing_takes_as_many_steps_as_the_tokens_fill() -> None:
    rows = RowStatistics(16000, mean_tokens=512)
    speed = predict(rows=rows, packing=True, eval_fraction=0, num_train_epochs=1)
    assert speed.num_steps == 250


def test_hours_cost_the_price_of_the_card() -> None:
    speed = predict(gpu="h100", max_steps=1000)
    assert speed.hours
    assert speed.usd == pytest.approx(gpus()["h100"].usd_per_hour * speed.hours)


def test_a_card_without_a_price_costs_nothing_known() -> None:
    card = replace(gpus()["h100"], usd_per_hour=None)
    assert predict(gpu=card, max_steps=1000).usd is None


@pytest.mark.parametrize("mean_tokens", [None, 9999])
def test_rows_of_unknown_or_excess_length_count_as_full(mean_tokens: float | None) -> None:
    rows = RowStatistics(10, mean_tokens)
    assert predict(rows=rows).seconds_per_step == predict().seconds_per_step


def test_padding_is_computed_but_does_not_count() -> None:
    job = {
        "rows": RowStatistics(1000, mean_tokens=500),
        "attn_implementation": "flash_attention_2",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
    }
    share = predict(**job).tokens_per_second / predict(**job, packing=True).tokens_per_second
    assert 0.5 < share < 0.6  # Unsloth #3672: 52 s / 96 s


def drawn_padding(batch_size: int, num_batches: int, count: int = 3000) -> float:
    """Return the mean padded length of rows drawn at random, of 100 tokens on average."""
    generator, padded = random.Random(0), 0.0
    for _ in range(count):
        lengths = [50 + generator.expovariate(1 / 50) for _ in range(batch_size * num_batches)]
        step = sorted(lengths, reverse=True)
        padded += sum(step[::batch_size]) / num_batches
    return padded / count


@pytest.mark.parametrize(("batch_size", "num_batches"), [(8, 1), (4, 4), (2, 8), (16, 4)])
def test_the_padding_of_random_rows_is_as_forecast(batch_size: int, num_batches: int) -> None:
    split = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": num_batches,
    }
    rows = RowStatistics(1000, mean_tokens=100)
    batch = micro_batch(JobSpec.parse(split), rows, sees_documents=False)
    padded = batch.attended_tokens
    assert padded == pytest.approx(drawn_padding(batch_size, num_batches), rel=0.02)
    assert batch == MicroBatch(batch_size * padded, batch_size * 100, padded)


@pytest.mark.parametrize(
    "fields", [{"stage": "kto"}, {"shuffle": False}, {"stage": "grpo", "num_generations": 8}]
)
def test_rows_in_a_fixed_order_are_padded_as_they_come(fields: dict[str, object]) -> None:
    rows = RowStatistics(1000, mean_tokens=100)
    once, often = (
        micro_batch(
            JobSpec.parse(
                {
                    **fields,
                    "per_device_train_batch_size": 8,
                    "gradient_accumulation_steps": num_batches,
                }
            ),
            rows,
            sees_documents=False,
        )
        for num_batches in (1, 4)
    )
    assert once == often
