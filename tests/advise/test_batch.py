"""Largest batch that fits, for one job and for a table."""

import pytest

from core.advise import Case, what_fits
from core.advise.batch import MAX_BATCH, largest_batch
from core.models import ModelShape, gpus
from tests.builders.advice_cases import LLAMA_8B, QWEN_SMALL, card, job_of


@pytest.mark.parametrize(
    ("fields", "shape", "capacity_gib"),
    [
        ({}, LLAMA_8B, 48),
        ({"method": "qlora"}, LLAMA_8B, 16),
        ({"attn_implementation": "eager"}, QWEN_SMALL, 40),
    ],
)
def test_the_largest_batch_fits_and_one_more_does_not(
    fields: dict[str, object], shape: ModelShape, capacity_gib: float
) -> None:
    gpu, job = card(capacity_gib), job_of(**fields)
    batch = largest_batch(job, shape, gpu)
    assert batch
    for size, fits in ((batch, True), (batch + 1, False)):
        sized = job.model_copy(update={"per_device_train_batch_size": size})
        assert Case(sized, shape, gpu).fits is fits


def test_a_larger_card_takes_a_larger_batch() -> None:
    batches = [
        largest_batch(job_of(method="qlora"), LLAMA_8B, card(size)) or 0 for size in (8, 12, 24, 96)
    ]
    assert batches == sorted(batches)


def test_a_card_that_is_too_small_takes_no_batch() -> None:
    assert largest_batch(job_of(method="qlora"), LLAMA_8B, card(4)) is None


def test_a_batch_is_never_larger_than_a_job_may_ask_for() -> None:
    assert largest_batch(job_of(max_length=8), QWEN_SMALL, card(4000)) == MAX_BATCH


def test_the_table_has_a_cell_for_every_model_method_and_card() -> None:
    shapes = [("small", QWEN_SMALL), ("large", LLAMA_8B)]
    cells = what_fits(shapes, ("full", "qlora"), [gpus()["rtx-4090"]])
    assert [(cell.model, cell.method) for cell in cells] == [
        ("small", "full"),
        ("small", "qlora"),
        ("large", "full"),
        ("large", "qlora"),
    ]


def test_a_cell_is_empty_if_nothing_fits() -> None:
    [cell] = what_fits([("large", LLAMA_8B)], ("full",), [gpus()["rtx-4090"]])
    assert cell.batch is None


def test_a_smaller_model_takes_a_larger_batch() -> None:
    shapes = [("small", QWEN_SMALL), ("large", LLAMA_8B)]
    small, large = what_fits(shapes, ("qlora",), [gpus()["rtx-4090"]])
    assert (small.batch or 0) > (large.batch or 0) > 0
