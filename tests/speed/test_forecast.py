"""Forecasts of single settings move in the right direction, by about the right amount."""

from dataclasses import replace
from typing import get_args

import pytest

from core.job import JobSpec
from core.models import gpus, models
from core.speed import RowStatistics, predict_speed
from core.speed.passes import RECOMPUTED_ELEMENTWISE, passes_of
from core.speed.work import OPTIMIZER_TRAFFIC
from core.training.contract.job import EXTRA_OPTIMIZERS, OptimizerName
from core.training.contract.methods import METHODS
from tests.builders.forecasts import LLAMA_8B, predict


def test_lora_is_faster_than_full_fine_tuning() -> None:
    assert predict(method="full").tokens_per_second < predict(method="qlora").tokens_per_second


def test_qlora_is_not_faster_than_lora() -> None:
    assert predict(method="qlora").tokens_per_second <= predict(method="lora").tokens_per_second


@pytest.mark.parametrize(("method", "least", "most"), [("lora", 1.35, 1.5), ("full", 1.22, 1.35)])
def test_checkpointing_costs_more_with_fewer_gradients(
    method: str, least: float, most: float
) -> None:
    kept = predict(method=method, gradient_checkpointing=False).seconds_per_step
    assert least < predict(method=method).seconds_per_step / kept < most


def test_a_faster_card_is_faster() -> None:
    cards = ("t4", "rtx-3090", "rtx-4090", "a100-80gb", "h100", "b200")
    rates = [predict(gpu=gpu).tokens_per_second for gpu in cards]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    "change", [{"torch_compile": True}, {"use_liger_kernel": True}, {"optim": "adamw_8bit"}]
)
def test_a_setting_that_saves_traffic_saves_time(change: dict[str, object]) -> None:
    changed = predict(method="full", **change)
    assert changed.seconds_per_step < predict(method="full").seconds_per_step


@pytest.mark.parametrize(
    "change", [{"attn_implementation": "eager"}, {"use_dora": True}, {"dtype": "float32"}]
)
def test_a_setting_that_adds_traffic_takes_time(change: dict[str, object]) -> None:
    assert predict(**change).seconds_per_step > predict().seconds_per_step


@pytest.mark.parametrize(("kernel", "saves"), [("flash_attention_2", True), ("eager", False)])
def test_a_window_saves_time_only_if_the_kernel_skips_it(kernel: str, saves: bool) -> None:
    shape = models()["google/gemma-3-1b-it"].shape
    wide = replace(shape, sliding_window=8192)
    fields = {
        "per_device_train_batch_size": 1,
        "max_length": 8192,
        "attn_implementation": kernel,
    }
    narrow_seconds = predict(shape, "h100", **fields).seconds_per_step
    assert (narrow_seconds < predict(wide, "h100", **fields).seconds_per_step) is saves


def test_only_the_experts_that_a_token_meets_take_time() -> None:
    sparse, dense = "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-32B"
    assert predict(sparse, "h200").tokens_per_second > 4 * predict(dense, "h200").tokens_per_second


@pytest.mark.parametrize("number", [2, 4])
def test_checkpointing_every_nth_layer_costs_an_nth(number: int) -> None:
    kept = predict(gradient_checkpointing=False).seconds_per_step
    cost_of_all = predict().seconds_per_step - kept
    cost = predict(checkpoint_every_n_layers=number).seconds_per_step - kept
    assert cost == pytest.approx(cost_of_all / number)


BUDGETS = (1.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


@pytest.fixture(scope="module")
def passes_by_budget():
    """Passes of compiled layers under falling budgets."""
    shape = models()[LLAMA_8B].shape
    compiled = {"gradient_checkpointing": False, "torch_compile": True}
    jobs = [JobSpec.parse({**compiled, "activation_memory_budget": each}) for each in BUDGETS]
    return [passes_of(job, shape) for job in jobs]


def test_a_smaller_budget_repeats_more_matrix_products(passes_by_budget) -> None:
    repeated = [each.recompute for each in passes_by_budget]
    assert repeated == sorted(repeated)


def test_a_budget_of_70_percent_repeats_no_matrix_product(passes_by_budget) -> None:
    assert [each.recompute == 0 for each in passes_by_budget] == [True] * 2 + [False] * 7


def test_a_budget_repeats_elementwise_work_first(passes_by_budget) -> None:
    repeated = [each.recompute_elementwise for each in passes_by_budget]
    assert repeated == [0, RECOMPUTED_ELEMENTWISE] + [1] * 7


def test_checkpointing_repeats_more_than_the_smallest_budget(passes_by_budget) -> None:
    checkpointed = passes_of(JobSpec.parse({"torch_compile": True}), models()[LLAMA_8B].shape)
    assert checkpointed.recompute > passes_by_budget[-1].recompute


def offloading_cost(checkpointing: bool) -> float:
    kept = predict(gradient_checkpointing=checkpointing)
    moved = predict(gradient_checkpointing=checkpointing, activation_offloading=True)
    return moved.seconds_per_step / kept.seconds_per_step


def test_offloading_checkpointed_layers_costs_little() -> None:
    assert 1 < offloading_cost(checkpointing=True) < 1.15


def test_offloading_all_activations_costs_more() -> None:
    assert offloading_cost(checkpointing=False) > 1.15


@pytest.mark.parametrize(("gpu", "is_faster"), [("a100-80gb", True), ("t4", False)])
def test_varlen_separates_packed_rows_on_cards_that_have_it(gpu: str, is_faster: bool) -> None:
    rows = RowStatistics(1000, mean_tokens=200)
    packed = {"packing": True, "max_length": 8192, "rows": rows}
    varlen = predict(gpu=gpu, attn_implementation="varlen", **packed)
    masked = predict(gpu=gpu, attn_implementation="sdpa", **packed)
    assert (varlen.tokens_per_second > 1.2 * masked.tokens_per_second) is is_faster


def test_packed_rows_attend_to_each_other_without_varlen() -> None:
    few = predict(packing=True, per_device_train_batch_size=1)
    many = predict(packing=True, per_device_train_batch_size=8)
    assert many.tokens_per_second < few.tokens_per_second / 2


def test_capped_scores_are_faster_if_they_are_not_stored() -> None:
    job = {"model": "google/gemma-2-9b", "max_length": 8192}
    flex = predict(**job, attn_implementation="flex_attention")
    eager = predict(**job, attn_implementation="eager")
    assert flex.tokens_per_second > 1.2 * eager.tokens_per_second


def test_fewer_trained_layers_are_faster() -> None:
    rates = [
        predict(method="freeze", num_trainable_layers=number).tokens_per_second
        for number in (32, 16, 2)
    ]
    assert rates == sorted(rates)


def test_training_every_layer_is_as_fast_as_full_fine_tuning() -> None:
    freeze = predict(method="freeze", num_trainable_layers=32).tokens_per_second
    assert freeze == pytest.approx(predict(method="full").tokens_per_second, rel=0.01)


def test_checkpointing_recomputes_no_frozen_layer() -> None:
    two_layers = {"method": "freeze", "num_trainable_layers": 2}
    kept = predict(**two_layers, gradient_checkpointing=False).seconds_per_step
    recomputed = predict(**two_layers, gradient_checkpointing=True).seconds_per_step
    assert kept < recomputed < 1.1 * kept


@pytest.mark.parametrize(("max_length", "is_slower"), [(4096, False), (128, True)])
def test_a_slow_processor_matters_only_for_few_tokens(max_length: int, is_slower: bool) -> None:
    job = JobSpec.parse({"max_length": max_length, "per_device_train_batch_size": 4})
    shape, gpu = models()[LLAMA_8B].shape, gpus()["h100"]
    usual = predict_speed(job, shape, gpu)
    slow = predict_speed(job, shape, gpu, host_factor=1.5)
    assert usual
    assert slow
    assert (slow.seconds_per_step > usual.seconds_per_step) is is_slower


@pytest.mark.parametrize(
    "change",
    [{"compute_capability": (0, 0)}, {"flops": 0.0}, {"memory_bandwidth_bytes_per_second": 0.0}],
)
def test_a_cpu_and_an_unknown_card_have_no_forecast(change: dict[str, object]) -> None:
    card = replace(gpus()["h100"], **change)  # type: ignore[arg-type]
    assert predict_speed(JobSpec(), models()[LLAMA_8B].shape, card) is None


@pytest.mark.parametrize("gpu", gpus())
def test_every_card_has_a_forecast(gpu: str) -> None:
    assert 10 < predict(gpu=gpu, method="qlora").tokens_per_second < 100_000


def test_every_optimizer_of_the_job_has_its_traffic() -> None:
    assert set(OPTIMIZER_TRAFFIC) | set(EXTRA_OPTIMIZERS) == set(get_args(OptimizerName))


def test_json_holds_the_fields_of_the_command_line() -> None:
    names = {"tokens_per_second", "seconds_per_step", "hours", "usd"}
    assert set(predict().to_json()) == names


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_forecast(method: str) -> None:
    assert predict(method=method).tokens_per_second > 10
