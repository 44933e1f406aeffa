"""What a card can train: settings that fit, their order, the search that is kept."""

import pytest

from core.advise import Case
from core.after_training.compare.on_card import (
    Wish,
    find_gpu,
    models_on_card,
    most_demanding_methods,
)
from core.job import JobSpec, SpecError
from core.models import gpus, models
from core.runs import Home
from core.speed import RowStatistics

SMALL, LARGE = "HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-3.2-1B"
TWO_MODELS = Wish(gpus()["rtx-3060"], max_length=512, only=(SMALL, LARGE))


def case_of(each) -> Case:
    """Return the job that a line stands for, on the card of TWO_MODELS."""
    job = JobSpec.parse(
        {
            "method": each.method,
            "max_length": each.max_length,
            "per_device_train_batch_size": each.per_device_train_batch_size,
        }
    )
    return Case(job, models()[each.model].shape, TWO_MODELS.gpu)


def test_every_line_fits_with_the_memory_it_says(home: Home) -> None:
    for each in models_on_card(home, TWO_MODELS):
        case = case_of(each)
        assert case.fits
        assert case.memory.total_bytes == each.total_bytes


def test_one_row_more_does_not_fit(home: Home) -> None:
    largest = max(models_on_card(home, TWO_MODELS), key=lambda each: each.total_bytes)
    fields = {"per_device_train_batch_size": largest.per_device_train_batch_size + 1}
    changed = case_of(largest).changed(fields)
    assert changed is not None
    assert not changed.fits


def test_largest_models_come_first(home: Home) -> None:
    found = models_on_card(home, TWO_MODELS)
    assert found[0].model == LARGE


def test_fastest_come_first_if_asked(home: Home) -> None:
    wish = Wish(TWO_MODELS.gpu, max_length=512, order="fastest", only=(SMALL, LARGE))
    rates = [each.tokens_per_second for each in models_on_card(home, wish)]
    assert rates == sorted(rates, reverse=True)


def test_longest_rows_are_within_the_positions(home: Home) -> None:
    wish = Wish(TWO_MODELS.gpu, order="context", only=(SMALL,))
    lengths = {each.max_length for each in models_on_card(home, wish)}
    assert max(lengths) == models()[SMALL].shape.max_position_embeddings


def test_kept_search_gives_the_same(home: Home) -> None:
    first = models_on_card(home, TWO_MODELS)
    assert list((home.path / "models").iterdir())
    assert models_on_card(home, TWO_MODELS) == first


def test_damaged_kept_search_is_done_again(home: Home) -> None:
    wish = Wish(TWO_MODELS.gpu, max_length=512, only=(SMALL,))
    first = models_on_card(home, wish)
    (kept,) = (home.path / "models").iterdir()
    kept.write_text('{"HuggingFaceTB/SmolLM2-135M": [3]}')
    assert models_on_card(home, wish) == first


def test_hours_are_for_the_data(home: Home) -> None:
    wish = Wish(TWO_MODELS.gpu, max_length=512, only=(SMALL,))
    few = models_on_card(home, wish, RowStatistics(100_000, 100.0))
    many = models_on_card(home, wish, RowStatistics(1_000_000, 100.0))
    assert few[0].hours is not None
    assert many[0].hours is not None
    assert many[0].hours > 5 * few[0].hours


def test_json_has_the_keys_of_the_contract(home: Home) -> None:
    found = models_on_card(home, Wish(TWO_MODELS.gpu, max_length=512, only=(SMALL,)))
    assert list(found[0].to_json()) == [
        "model",
        "method",
        "per_device_train_batch_size",
        "max_length",
        "total_bytes",
        "tokens_per_second",
    ]


@pytest.mark.parametrize("name", ["rtx-3060", "RTX 3060", "NVIDIA GeForce RTX 3060", "rtx_3060"])
def test_card_is_found_however_it_is_written(name: str) -> None:
    assert find_gpu(name).id == "rtx-3060"


def test_unknown_card_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"did you mean .*rtx-3060"):
        find_gpu("rtx-3O60")


def test_card_that_is_like_none_lists_all() -> None:
    with pytest.raises(SpecError, match="choose local, rtx-2070"):
        find_gpu("%%%")


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_the_mark_of_a_model_is_the_most_demanding_method_that_fits(model: str) -> None:
    marks = most_demanding_methods(gpus()["rtx-3060"], "sft")
    wish = Wish(gpus()["rtx-3060"], only=(model,))
    found = {each.method for each in models_on_card(None, wish)}
    assert marks[model] == next(each for each in ("full", "lora", "qlora") if each in found)


def test_a_model_that_no_method_fits_has_no_mark() -> None:
    marks = most_demanding_methods(gpus()["rtx-3060"], "sft")
    assert marks["meta-llama/Llama-3.1-70B"] == ""
