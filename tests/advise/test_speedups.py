"""Speedups for a job that fits: they still fit, are faster, and are those of the planner."""

from dataclasses import replace

import pytest

from core.advise import Case, Fix, Harm, suggest_fixes
from core.advise.suggest import MIN_GAIN
from core.job import JobSpec
from core.memory import estimate
from core.models import gpus
from core.speed import RowStatistics
from tests.builders.advice_cases import FULL_ROWS, LLAMA_8B, QWEN_SMALL, card, job_of, planned

ROWS = RowStatistics(5000, mean_tokens=300, p95_tokens=600)
ROOMY = {
    "lora": (job_of(), LLAMA_8B, gpus()["h100"]),
    "one row at once": (
        job_of(method="qlora", per_device_train_batch_size=1),
        LLAMA_8B,
        gpus()["h200"],
    ),
    "short rows": (job_of(max_length=512), QWEN_SMALL, gpus()["rtx-4090"]),
}


@pytest.fixture(params=ROOMY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def changed(job: JobSpec, fix: Fix) -> JobSpec:
    return JobSpec.parse({**job.model_dump(), **fix.change})


def test_a_speedup_still_fits(name: str) -> None:
    job, shape, gpu = ROOMY[name]
    fixes = suggest_fixes(job, shape, gpu, ROWS)
    assert fixes
    for fix in fixes:
        assert estimate(changed(job, fix), shape, gpu).verdict == "fits"


def test_a_speedup_is_worth_a_button(name: str) -> None:
    for fix in suggest_fixes(*ROOMY[name], ROWS):
        assert fix.slowdown
        assert fix.slowdown <= 1 - MIN_GAIN


def test_a_speedup_is_marked_as_one(name: str) -> None:
    assert {fix.saves for fix in suggest_fixes(*ROOMY[name], ROWS)} == {"time"}


def test_a_speedup_without_harm_keeps_the_rows_of_a_step(name: str) -> None:
    job = ROOMY[name][0]
    fixes = [fix for fix in suggest_fixes(*ROOMY[name], ROWS) if fix.harm == Harm.NONE]
    assert {changed(job, fix).effective_batch_size for fix in fixes} == {job.effective_batch_size}


def test_the_best_speedup_is_the_plan_fastest_that_fits(name: str) -> None:
    job, shape, gpu = ROOMY[name]
    fastest = planned(job.model_copy(update={"profile": "fastest"}), shape, gpu, ROWS)
    before = Case(job, shape, gpu, ROWS)
    assert fastest.seconds
    assert before.seconds
    best = min(fix.slowdown or 1 for fix in suggest_fixes(job, shape, gpu, ROWS))
    assert best <= fastest.seconds / before.seconds


def test_packing_is_offered_beside_settings_without_it() -> None:
    harms = {fix.title: fix.harm for fix in suggest_fixes(*ROOMY["lora"], ROWS)}
    assert harms["Fastest that fits"] == Harm.NONE
    assert harms["Fastest that fits, rows packed"] == Harm.SLIGHT


def test_rows_that_are_not_packed_give_one_speedup() -> None:
    fixes = suggest_fixes(*ROOMY["lora"], FULL_ROWS)
    assert [(fix.title, fix.harm) for fix in fixes] == [("Fastest that fits", Harm.NONE)]


def test_spare_memory_is_used_for_activations_batch_and_base() -> None:
    fixes = suggest_fixes(*ROOMY["one row at once"], ROWS)
    fields = {field for fix in fixes for field in fix.change}
    assert {"gradient_checkpointing", "method", "per_device_train_batch_size"} <= fields


def test_activations_are_kept_with_a_smaller_batch_if_needed() -> None:
    job = job_of(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    [fix] = suggest_fixes(job, LLAMA_8B, gpus()["h100"])
    assert changed(job, fix).per_device_train_batch_size < 8
    assert not changed(job, fix).gradient_checkpointing


def test_short_rows_are_packed_where_that_is_faster() -> None:
    job = job_of(per_device_train_batch_size=16, gradient_accumulation_steps=1)
    fixes = suggest_fixes(job, QWEN_SMALL, gpus()["rtx-4090"], ROWS)
    [packed] = [fix for fix in fixes if "packing" in fix.change]
    assert packed.change["attn_implementation"] == "varlen"
    assert packed.slowdown
    assert packed.slowdown < 0.8


def test_layers_that_need_not_be_checkpointed_are_not() -> None:
    job = job_of(method="qlora", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    few_rows = RowStatistics(50, 2000)  # too few to compile for
    [fix] = suggest_fixes(job, LLAMA_8B, card(15), few_rows)
    assert changed(job, fix).checkpoint_every_n_layers > 1


def test_the_precision_of_the_job_stays(name: str) -> None:
    for fix in suggest_fixes(*ROOMY[name], ROWS):
        assert "dtype" not in fix.change


def test_a_planned_job_needs_no_speedup() -> None:
    job, shape, gpu = ROOMY["lora"]
    fastest = planned(job.model_copy(update={"profile": "fastest"}), shape, gpu, ROWS)
    assert not suggest_fixes(fastest.job, shape, gpu, ROWS)


def test_without_a_forecast_nothing_is_called_faster() -> None:
    assert not suggest_fixes(job_of(), LLAMA_8B, replace(gpus()["h100"], flops=0.0))
