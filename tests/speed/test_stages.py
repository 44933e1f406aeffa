"""Forecasts of the stages: pairs, reference models, drawn answers."""

import pytest

from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.forecasts import predict

ROWS = RowStatistics(1000, mean_tokens=500)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", METHODS)
def test_every_stage_and_method_has_a_forecast(stage: str, method: str) -> None:
    speed = predict(rows=ROWS, stage=stage, method=method)
    assert 10 < speed.tokens_per_second < 50_000
    assert speed.hours


def seconds_per_step(stage: str) -> float:
    return predict(stage=stage, method="full").seconds_per_step


def test_a_preference_pair_is_two_rows() -> None:
    assert seconds_per_step("orpo") == pytest.approx(2 * seconds_per_step("sft"), rel=0.1)


def test_a_reference_model_reads_both_rows_of_a_pair() -> None:
    # 3 + 1 passes through the layers instead of 3, apart from recomputing.
    assert 2.3 < seconds_per_step("dpo") / seconds_per_step("sft") < 2.7


@pytest.mark.parametrize(("method", "least", "most"), [("lora", 1.3, 1.5), ("full", 1.15, 1.35)])
def test_a_precomputed_reference_takes_no_time_in_a_step(
    method: str, least: float, most: float
) -> None:
    job = {"stage": "dpo", "method": method, "gradient_checkpointing": False}
    always = predict(rows=RowStatistics(1000), **job)
    once = predict(rows=RowStatistics(1000), **job, precompute_ref_log_probs=True)
    assert least < always.seconds_per_step / once.seconds_per_step < most


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_precomputed_reference_reads_every_row_once(method: str) -> None:
    job = {"stage": "dpo", "method": method, "gradient_checkpointing": False}
    one_epoch = predict(rows=RowStatistics(1000), **job)
    once = predict(rows=RowStatistics(1000), **job, precompute_ref_log_probs=True)
    assert once.hours == pytest.approx(one_epoch.hours, rel=0.05)


def test_a_precomputed_reference_waits_for_the_processor_too() -> None:
    rows = RowStatistics(1000, mean_tokens=20)
    small = {"stage": "dpo", "max_length": 64, "num_train_epochs": 1}
    always = predict(rows=rows, **small)
    once = predict(rows=rows, **small, precompute_ref_log_probs=True)
    assert once.hours == pytest.approx(always.hours, rel=0.01)


def test_answers_are_drawn_one_token_after_the_other() -> None:
    rows = RowStatistics(1000, mean_tokens=100)
    short = predict(rows=rows, stage="grpo", max_completion_length=256)
    long = predict(rows=rows, stage="grpo", max_completion_length=1024)
    assert 3 < long.seconds_per_step / short.seconds_per_step < 5


def test_every_prompt_is_answered_several_times() -> None:
    four = predict(rows=RowStatistics(1000), stage="grpo", num_generations=4).num_steps
    eight = predict(rows=RowStatistics(1000), stage="grpo", num_generations=8).num_steps
    assert four
    assert eight == 2 * four
