"""Every plan fits, is no slower on a larger card, and leaves alone what the user has set."""

from dataclasses import replace
from itertools import pairwise

import pytest

from core.advise import PLANNED_FIELDS, Case, Plan, plan
from core.advise.search import MIN_GAIN
from core.job import JobSpec
from core.memory import estimate
from core.models import Gpu, ModelShape, gpus
from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.advice_cases import (
    FULL_ROWS,
    LLAMA_8B,
    PLANNED_CASES,
    QWEN_SMALL,
    SHORT_ROWS,
    card,
    fastest,
    job_of,
    planned,
)

MAX_ESTIMATES = 4


@pytest.fixture(params=PLANNED_CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_plan_fits(name: str) -> None:
    assert planned(*PLANNED_CASES[name]).fits


@pytest.mark.parametrize("factor", [1.08, 1.3, 2])
def test_a_plan_fits_wherever_the_smallest_does(factor: float) -> None:
    smallest = planned(job_of(method="qlora", profile="smallest"), LLAMA_8B, card(24))
    gpu = replace(card(24), capacity_bytes=int(factor * smallest.memory.total_bytes))
    assert planned(fastest(method="qlora"), LLAMA_8B, gpu).fits


def test_a_step_sees_as_many_rows_or_nearly_so_if_packed(name: str) -> None:
    job, _shape, _gpu, rows = PLANNED_CASES[name]
    after = planned(*PLANNED_CASES[name]).job
    num_rows = float(after.effective_batch_size)
    if after.packing and rows and rows.mean_tokens:
        num_rows *= after.max_length / rows.mean_tokens
    tolerance = 1 / 3 if after.packing else 0
    assert abs(num_rows / job.effective_batch_size - 1) <= tolerance


def test_a_plan_changes_only_planned_fields(name: str) -> None:
    assert set(plan(*PLANNED_CASES[name]).change) <= PLANNED_FIELDS


def test_a_planned_job_is_planned_the_same_again(name: str) -> None:
    once = planned(*PLANNED_CASES[name])
    assert planned(once.job, once.shape, once.gpu, once.rows) == once


@pytest.mark.parametrize("name", sorted(PLANNED_CASES.keys() - {"smallest"}))
def test_a_plan_is_no_slower_than_a_job_that_fits(name: str) -> None:
    asked, after = Case(*PLANNED_CASES[name]), planned(*PLANNED_CASES[name])
    longest = (1 + MIN_GAIN) * asked.seconds_per_token()
    assert not asked.fits or after.seconds_per_token() <= longest


def test_a_plan_does_at_most_slight_harm(name: str) -> None:
    job, after = PLANNED_CASES[name][0], planned(*PLANNED_CASES[name]).job
    result_fields = ("model", "method", "max_length", "learning_rate", "lora_r", "num_train_epochs")
    assert all(getattr(after, field) == getattr(job, field) for field in result_fields)


def test_few_estimates_are_made(name: str) -> None:
    job, shape, gpu, rows = PLANNED_CASES[name]
    before = estimate.cache_info().misses
    plan(job.model_copy(update={"lora_r": 24}), shape, gpu, rows)  # nothing of it is cached
    assert estimate.cache_info().misses - before <= MAX_ESTIMATES


def test_an_ample_card_takes_one_estimate() -> None:
    before = estimate.cache_info().misses
    plan(fastest(lora_r=40), LLAMA_8B, gpus()["h200"], SHORT_ROWS)
    assert estimate.cache_info().misses - before == 1


OTHER_VALUES = {
    "dtype": "float32",
    "packing": False,
    "attn_implementation": "eager",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "checkpoint_every_n_layers": 3,
    "activation_offloading": True,
    "torch_compile": True,
    "activation_memory_budget": 0.4,
    "optim": "adamw_torch",
    "precompute_ref_log_probs": False,
}
"""A value for each planned field that the plan below would not choose."""


@pytest.mark.parametrize("field", sorted(PLANNED_FIELDS))
def test_a_value_set_by_the_user_stays(field: str) -> None:
    job = fastest(**{field: OTHER_VALUES[field]})
    after = planned(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS, frozenset({field})).job
    assert getattr(after, field) == OTHER_VALUES[field]


@pytest.mark.parametrize("field", sorted(PLANNED_FIELDS))
def test_the_other_fields_are_planned_around_it(field: str) -> None:
    job = fastest(**{field: OTHER_VALUES[field]})
    chosen = plan(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS, frozenset({field})).change
    assert chosen
    assert field not in chosen


@pytest.mark.parametrize("field", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_a_batch_set_by_the_user_keeps_the_rows_of_a_step(field: str) -> None:
    job = fastest(**{field: OTHER_VALUES[field]})
    after = planned(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS, frozenset({field})).job
    assert after.packing or after.effective_batch_size == job.effective_batch_size


def test_checkpointing_set_by_the_user_need_not_cover_all_layers() -> None:
    job, set_by_user = fastest(gradient_checkpointing=True), frozenset({"gradient_checkpointing"})
    assert (
        planned(job, LLAMA_8B, gpus()["h200"], None, set_by_user).job.checkpoint_every_n_layers > 1
    )


@pytest.mark.parametrize(
    ("field", "value"), [("activation_memory_budget", 0.4), ("checkpoint_every_n_layers", 3)]
)
def test_a_detail_set_by_the_user_rules_out_no_way_to_run(field: str, value: float) -> None:
    job = fastest(method="qlora", **{field: value})
    after = planned(job, LLAMA_8B, gpus()["rtx-3060"], SHORT_ROWS, frozenset({field}))
    assert after.fits
    assert after.job.torch_compile
    assert not after.job.gradient_checkpointing


def test_the_profile_custom_chooses_nothing() -> None:
    assert plan(job_of(), LLAMA_8B, gpus()["h200"], SHORT_ROWS) == Plan()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_every_stage_has_a_plan_that_fits(stage: str, method: str) -> None:
    job = fastest(stage=stage, method=method)
    assert planned(job, QWEN_SMALL, gpus()["a100-80gb"], SHORT_ROWS).fits


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan_that_fits(method: str) -> None:
    assert planned(fastest(method=method), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS).fits


def test_if_nothing_fits_the_plan_is_the_smallest() -> None:
    after = planned(fastest(method="full"), LLAMA_8B, card(8)).job
    assert (after.per_device_train_batch_size, after.optim) == (1, "paged_adamw_8bit")
    assert after.gradient_checkpointing
    assert after.activation_offloading


def test_a_file_without_rows_gets_a_plan_too() -> None:
    assert plan(fastest(), QWEN_SMALL, gpus()["rtx-4090"], RowStatistics(0)).choices


# Larger cards


def rising_seconds(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None
) -> list[float]:
    """Return seconds per token of the plans for a card with more and more memory, where one
    fits."""
    plans = [
        planned(job, shape, replace(gpu, capacity_bytes=int(gpu.capacity_bytes * factor)), rows)
        for factor in (1, 1.25, 1.6, 2.5)
    ]
    return [case.seconds_per_token() for case in plans if case.fits]


@pytest.mark.parametrize("gpu", ["t4", "h100"])
@pytest.mark.parametrize("rows", [None, SHORT_ROWS], ids=["unknown rows", "short rows"])
def test_a_larger_card_never_gets_a_slower_plan(gpu: str, rows: RowStatistics | None) -> None:
    seconds = rising_seconds(fastest(method="qlora"), LLAMA_8B, gpus()[gpu], rows)
    assert seconds
    assert all(later <= earlier for earlier, later in pairwise(seconds))


@pytest.mark.slow
@pytest.mark.parametrize("gpu", gpus())
@pytest.mark.parametrize(("method", "rows"), [("lora", FULL_ROWS), ("qlora", SHORT_ROWS)])
def test_no_preset_gets_a_slower_plan_with_more_memory(
    gpu: str, method: str, rows: RowStatistics
) -> None:
    seconds = rising_seconds(fastest(method=method), LLAMA_8B, gpus()[gpu], rows)
    assert all(later <= earlier for earlier, later in pairwise(seconds))
