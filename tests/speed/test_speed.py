"""The forecast of speed: near the rates that others published, and moving the right way."""

import random
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest

from core.job import JobSpec, OptimizerName
from core.models import Gpu, ModelShape, gpus, models
from core.speed import (
    BAND,
    OPTIMIZER_TRAFFIC,
    Measurement,
    RowStatistics,
    Speed,
    calibrated,
    error_of,
    mfu,
    model_flops_per_token,
    predict_speed,
)
from core.speed.passes import NORMS_AND_GATE_AGAIN, passes_of
from core.speed.rows import micro_batch
from core.training.contract.methods import METHODS
from core.training.contract.optimizers import EXTRA_OPTIMIZERS
from core.training.contract.stages import STAGES

LLAMA_3B, LLAMA_8B, LLAMA_2_7B = (
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-2-7b-hf",
)


def predict(
    model: str = LLAMA_8B,
    gpu: str | Gpu = "a100-80gb",
    rows: RowStatistics | None = None,
    **fields: object,
) -> Speed:
    shape = QWEN[model] if model in QWEN else models()[model].shape
    speed = predict_speed(
        JobSpec.parse(fields), shape, gpus()[gpu] if isinstance(gpu, str) else gpu, rows
    )
    assert speed
    return speed


def qwen(**sizes: int) -> ModelShape:
    """A first Qwen: layers like Llama's, as many key heads as query heads, a large vocabulary."""
    shape: dict[str, object] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return ModelShape.from_config({**shape, "max_position_embeddings": 32768, **sizes})


QWEN = {
    "Qwen-7B": qwen(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=151936,
    ),
    "Qwen-14B": qwen(
        hidden_size=5120,
        intermediate_size=13696,
        num_hidden_layers=40,
        num_attention_heads=40,
        vocab_size=152064,
    ),
}


@dataclass(frozen=True)
class Published:
    """A rate that somebody measured, in tokens per second."""

    model: str
    gpu: str
    tokens_per_second: float
    fields: dict[str, Any]


def torchtune(model: str, gpu: str, rate: float, **fields: object) -> Published:
    """pytorch/torchtune README.md: packed rows, two at once, FlashAttention, compiled unless it says otherwise."""
    usual = {
        "attn_implementation": "flash_attention_2",
        "torch_compile": True,
        "gradient_accumulation_steps": 1,
    }
    return Published(model, gpu, rate, {**usual, "per_device_train_batch_size": 2, **fields})


def nemo(model: str, rate: float) -> Published:
    """NVIDIA-NeMo/Automodel docs/performance-summary.mdx: LoRA without checkpointing, 2 x 4096."""
    fields = {
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": False,
        "max_length": 4096,
    }
    return Published(model, "h100", rate, fields)


def qwen_readme(model: str, max_length: int, rate: float) -> Published:
    """QwenLM/Qwen README.md: LoRA of rank 64 with checkpointing, one row at once."""
    fields = {"attn_implementation": "flash_attention_2", "lora_r": 64, "max_length": max_length}
    return Published(model, "a100-80gb", rate, {**fields, "per_device_train_batch_size": 1})


def litgpt(method: str, minutes: float) -> Published:
    """Lightning-AI/litgpt tutorials/resource-tables.md: minutes of 1,000 iterations of one short row."""
    fields = {"method": method, "max_length": 128, "lora_r": 8, "gradient_checkpointing": False}
    once = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    return Published(LLAMA_2_7B, "a100-40gb", 128 * 1000 / (60 * minutes), {**fields, **once})


PUBLISHED = (
    torchtune(
        LLAMA_3B, "a100-80gb", 9174, method="full", max_length=4096, gradient_checkpointing=False
    ),
    torchtune(
        LLAMA_3B,
        "a100-80gb",
        7075,
        method="full",
        max_length=4096,
        gradient_checkpointing=False,
        torch_compile=False,
    ),
    torchtune(LLAMA_3B, "a100-80gb", 7210, method="full", max_length=4096),
    torchtune(LLAMA_3B, "a100-80gb", 6960, method="full", max_length=4096, optim="adamw_8bit"),
    torchtune(LLAMA_3B, "a100-80gb", 8210, method="lora", max_length=4096),
    torchtune(LLAMA_3B, "a100-80gb", 8035, method="qlora", max_length=4096),
    torchtune(LLAMA_8B, "rtx-4090", 1650, method="full", optim="paged_adamw_8bit"),
    torchtune(LLAMA_8B, "rtx-4090", 3083, method="lora"),
    torchtune(LLAMA_8B, "rtx-4090", 2413, method="qlora"),
    nemo(LLAMA_8B, 12473),
    nemo("Qwen/Qwen2.5-7B", 14110),
    qwen_readme("Qwen-7B", 512, 2731),
    qwen_readme("Qwen-7B", 1024, 2926),
    qwen_readme("Qwen-7B", 2048, 3151),
    qwen_readme("Qwen-7B", 4096, 3244),
    qwen_readme("Qwen-14B", 2048, 1950),
    litgpt("lora", 2.36),
    litgpt("qlora", 3.68),
)
"""Left out: GPTQ bases, which have kernels of their own; runs on several cards; runs whose row lengths are unknown."""


@pytest.mark.parametrize(
    "row", PUBLISHED, ids=lambda row: f"{row.model.split('/')[-1]}-{row.tokens_per_second:.0f}"
)
def test_a_published_rate_lies_in_the_band_of_its_forecast(row: Published) -> None:
    speed = predict(row.model, row.gpu, **row.fields)
    error = speed.tokens_per_second / row.tokens_per_second - 1
    assert abs(error) < speed.high_factor - 1


# Which way it moves


def test_lora_is_faster_than_full_and_qlora_is_not_faster_than_lora() -> None:
    full, lora, qlora = (
        predict(method=method).tokens_per_second for method in ("full", "lora", "qlora")
    )
    assert full < qlora <= lora


@pytest.mark.parametrize(("method", "least", "most"), [("lora", 1.35, 1.5), ("full", 1.22, 1.35)])
def test_checkpointing_costs_more_where_fewer_gradients_are_computed(
    method: str, least: float, most: float
) -> None:
    kept = predict(method=method, gradient_checkpointing=False).seconds_per_step
    assert least < predict(method=method).seconds_per_step / kept < most


def test_a_faster_card_is_faster() -> None:
    rates = [
        predict(gpu=gpu).tokens_per_second
        for gpu in ("t4", "rtx-3090", "rtx-4090", "a100-80gb", "h100", "b200")
    ]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    "change", [{"torch_compile": True}, {"use_liger_kernel": True}, {"optim": "adamw_8bit"}]
)
def test_what_saves_traffic_saves_time(change: dict[str, object]) -> None:
    assert (
        predict(method="full", **change).seconds_per_step < predict(method="full").seconds_per_step
    )


@pytest.mark.parametrize(
    "change", [{"attn_implementation": "eager"}, {"use_dora": True}, {"dtype": "float32"}]
)
def test_what_adds_traffic_takes_time(change: dict[str, object]) -> None:
    assert predict(**change).seconds_per_step > predict().seconds_per_step


def test_a_window_saves_attention_only_where_the_kernel_skips_it() -> None:
    job = {"per_device_train_batch_size": 1, "max_length": 8192}
    shape = models()["google/gemma-3-1b-it"].shape
    wide = replace(shape, sliding_window=8192)
    for kernel, saves in (("flash_attention_2", True), ("eager", False)):
        spec = JobSpec.parse({**job, "attn_implementation": kernel})
        narrow_speed, wide_speed = (
            predict_speed(spec, each, gpus()["h100"]) for each in (shape, wide)
        )
        assert narrow_speed and wide_speed
        assert (narrow_speed.seconds_per_step < wide_speed.seconds_per_step) == saves


def test_a_mixture_of_experts_is_as_fast_as_the_experts_that_a_token_meets() -> None:
    sparse, dense = "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-32B"
    assert predict(sparse, "h200").tokens_per_second > 4 * predict(dense, "h200").tokens_per_second


@pytest.mark.parametrize(
    ("bound", "fields"),
    [
        ("matrix math", {"max_length": 4096}),
        ("memory traffic", {"attn_implementation": "eager", "max_length": 16384}),
        ("the processor feeding the GPU", {"max_length": 128, "per_device_train_batch_size": 1}),
    ],
)
def test_the_forecast_says_what_binds(bound: str, fields: dict[str, object]) -> None:
    assert predict(**fields).bound_by == bound


def test_one_layer_of_several_costs_a_part_of_checkpointing_all() -> None:
    seconds = [predict(checkpoint_every_n_layers=number).seconds_per_step for number in (1, 2, 4)]
    kept = predict(gradient_checkpointing=False).seconds_per_step
    assert seconds[1] - kept == pytest.approx((seconds[0] - kept) / 2)
    assert seconds[2] - kept == pytest.approx((seconds[0] - kept) / 4)


def test_a_budget_costs_products_only_once_the_cheap_is_gone() -> None:
    compiled, shape = (
        {"gradient_checkpointing": False, "torch_compile": True},
        models()[LLAMA_8B].shape,
    )
    budgets = (1.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
    passes = [
        passes_of(JobSpec.parse({**compiled, "activation_memory_budget": each}), shape)
        for each in budgets
    ]
    again = [each.recompute for each in passes]
    assert again == sorted(again) and again[:2] == [0, 0] < again[2:]
    assert [each.rewrite for each in passes] == [0, NORMS_AND_GATE_AGAIN] + [1] * 7
    checkpointed = passes_of(JobSpec.parse({"torch_compile": True}), shape)
    assert checkpointed.recompute > again[-1] and checkpointed.rewrite == 1


def test_activations_in_main_memory_cost_less_where_most_are_computed_again() -> None:
    costs = [
        predict(gradient_checkpointing=checkpointing, activation_offloading=True).seconds_per_step
        / predict(gradient_checkpointing=checkpointing).seconds_per_step
        for checkpointing in (True, False)
    ]
    assert 1 < costs[0] < 1.15 < costs[1]


def test_joined_rows_are_told_apart_by_varlen_attention_where_the_card_has_it() -> None:
    rows = RowStatistics(1000, mean_tokens=200)
    joined = {"packing": True, "max_length": 8192, "rows": rows}
    for gpu, is_faster in (("a100-80gb", True), ("t4", False)):
        varlen, masked = (
            predict(gpu=gpu, attn_implementation=kernel, **joined) for kernel in ("varlen", "sdpa")
        )
        assert (varlen.tokens_per_second > 1.2 * masked.tokens_per_second) == is_faster


def test_capped_scores_are_faster_where_they_are_not_stored() -> None:
    flex, eager = (
        predict("google/gemma-2-9b", max_length=8192, attn_implementation=kernel)
        for kernel in ("flex_attention", "eager")
    )
    assert flex.tokens_per_second > 1.2 * eager.tokens_per_second


def test_training_the_last_layers_is_faster_than_training_all() -> None:
    rates = [
        predict(method="freeze", num_trainable_layers=number).tokens_per_second
        for number in (32, 16, 2)
    ]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(predict(method="full").tokens_per_second, rel=0.01)


def test_checkpointing_computes_no_frozen_layer_again() -> None:
    kept, again = (
        predict(method="freeze", num_trainable_layers=2, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert (
        kept.seconds_per_step < again.seconds_per_step < 1.1 * kept.seconds_per_step
    )  # 2 of 32 layers train


def test_a_slow_processor_matters_only_where_it_binds() -> None:
    shape, gpu = models()[LLAMA_8B].shape, gpus()["h100"]
    for length, is_slower in ((4096, False), (128, True)):
        job = JobSpec.parse({"max_length": length, "per_device_train_batch_size": 4})
        usual, slow = (predict_speed(job, shape, gpu, host_factor=factor) for factor in (1.0, 1.5))
        assert usual and slow and (slow.seconds_per_step > usual.seconds_per_step) == is_slower


# Stages


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_and_method_has_a_forecast(stage: str) -> None:
    rows = RowStatistics(1000, mean_tokens=500)
    for method in METHODS:
        speed = predict(rows=rows, stage=stage, method=method)
        assert 10 < speed.tokens_per_second < 50_000 and speed.hours


def test_a_preference_pair_is_two_rows_and_a_reference_reads_both() -> None:
    sft, orpo, dpo = (
        predict(stage=stage, method="full").seconds_per_step for stage in ("sft", "orpo", "dpo")
    )
    assert orpo == pytest.approx(2 * sft, rel=0.1)
    assert 2.3 * sft < dpo < 2.7 * sft  # 3 + 1 passes of the layers instead of 3, recomputing apart


@pytest.mark.parametrize(("method", "least", "most"), [("lora", 1.3, 1.5), ("full", 1.15, 1.35)])
def test_a_reference_asked_beforehand_costs_one_pass_over_the_rows(
    method: str, least: float, most: float
) -> None:
    rows, job = (
        RowStatistics(1000),
        {"stage": "dpo", "method": method, "gradient_checkpointing": False},
    )
    always, once = (predict(rows=rows, precompute_ref_log_probs=on, **job) for on in (False, True))
    assert always.num_steps == once.num_steps and always.hours and once.hours
    assert least < always.seconds_per_step / once.seconds_per_step < most
    assert once.hours == pytest.approx(always.hours, rel=0.05)  # of a single epoch


def test_a_reference_asked_beforehand_waits_for_the_processor_too() -> None:
    rows, small = (
        RowStatistics(1000, mean_tokens=20),
        {"stage": "dpo", "max_length": 64, "num_train_epochs": 1},
    )
    hours = [
        predict(rows=rows, precompute_ref_log_probs=on, **small).hours or 0 for on in (False, True)
    ]
    assert hours[1] == pytest.approx(hours[0], rel=0.01)  # each row is read once either way


def test_answers_are_drawn_one_token_after_the_other() -> None:
    rows = RowStatistics(1000, mean_tokens=100)
    short, long = (
        predict(rows=rows, stage="grpo", max_completion_length=tokens) for tokens in (256, 1024)
    )
    assert short.bound_by == long.bound_by == "drawing answers"
    assert 3 < long.seconds_per_step / short.seconds_per_step < 5


def test_every_prompt_is_answered_several_times() -> None:
    rows = RowStatistics(1000)
    steps = [
        predict(rows=rows, stage="grpo", num_generations=number).num_steps for number in (4, 8)
    ]
    assert steps[1] == 2 * (steps[0] or 0)


# Measured


MEASURED = (Measurement(1000, 800), Measurement(2000, 1700), Measurement(1000, 900))


def test_measured_rates_correct_the_forecast_by_their_median() -> None:
    forecast = predict(max_steps=100)
    corrected = calibrated(forecast, MEASURED)
    assert corrected.tokens_per_second == pytest.approx(0.85 * forecast.tokens_per_second)
    for field in ("seconds_per_step", "hours", "usd"):
        assert getattr(corrected, field) == pytest.approx(getattr(forecast, field) / 0.85)


def test_measured_rates_narrow_the_band_as_far_as_they_agree() -> None:
    forecast = predict()
    bands = [calibrated(forecast, MEASURED[:number]).high_factor - 1 for number in (0, 1, 3)]
    assert bands == pytest.approx([BAND, BAND / 2, 0.9 / 0.85 - 1])
    assert calibrated(forecast, [Measurement(1000, 1000)] * 5).high_factor == pytest.approx(1.05)


def test_a_forecast_says_what_it_rests_on() -> None:
    assert predict().certainty == "± 25 %"
    assert calibrated(predict(), MEASURED).certainty == "± 6 %, from 3 runs like this one"
    assert calibrated(predict(), MEASURED[:1]).certainty.endswith("from 1 run like this one")


def test_runs_that_measured_nothing_correct_nothing() -> None:
    assert calibrated(predict(), [Measurement(1000, 0)]) == predict()


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (3432, "12 % slower than forecast: 3,432 tokens/s instead of 3,900."),
        (4290, "10 % faster than forecast: 4,290 tokens/s instead of 3,900."),
        (3950, "As forecast: 3,950 tokens/s."),
    ],
)
def test_the_error_of_a_forecast_is_a_sentence(measured: float, sentence: str) -> None:
    assert error_of(3900, measured) == sentence


def test_a_rate_of_nothing_has_no_error() -> None:
    with pytest.raises(ValueError, match="above 0"):
        error_of(3900, 0)


@pytest.mark.parametrize(
    ("method", "gflop"),
    [("lora", 2 * (6.979 + 0.525) * 2 + 3 * 0.537), ("full", 2 * (6.979 + 0.525) * 3 + 3 * 0.537)],
)
def test_the_mathematics_of_a_token_is_counted_without_recomputing(
    method: str, gflop: float
) -> None:
    """Llama-3.1-8B: 6.979 billion linear weights in layers, 0.525 billion in the head; attention forward 2 x 2048 x
    4096 x 32 operations."""
    for checkpointing in (True, False):
        job = JobSpec.parse({"method": method, "gradient_checkpointing": checkpointing})
        assert model_flops_per_token(job, models()[LLAMA_8B].shape, 2048) == pytest.approx(
            gflop * 1e9, rel=0.001
        )


def test_how_busy_a_card_is_is_a_share_of_its_rating() -> None:
    shape, job = models()[LLAMA_8B].shape, JobSpec.parse({"method": "lora"})
    share = mfu(13_600, job, shape, gpus()["h200"], 2048)
    assert share == pytest.approx(13_600 * 31.6e9 / 989e12, rel=0.01)
    assert mfu(13_600, job, shape, replace(gpus()["h200"], flops=0.0), 2048) is None


# Rows, steps, hours and money


def test_without_the_number_of_rows_there_are_no_hours() -> None:
    speed = predict()
    assert (speed.num_steps, speed.hours, speed.usd) == (None, None, None)


def test_max_steps_decide_without_rows() -> None:
    speed = predict(max_steps=100)
    assert speed.num_steps == 100
    assert speed.hours == pytest.approx(100 * speed.seconds_per_step / 3600)


def test_epochs_count_the_rows_that_are_not_held_out() -> None:
    rows = RowStatistics(1000)
    assert (
        predict(rows=rows, eval_fraction=0.1, num_train_epochs=2).num_steps == 2 * 57
    )  # ceil(900 / 16)
    assert predict(rows=rows, eval_dataset="other.jsonl", num_train_epochs=2).num_steps == 2 * 63


def test_packing_takes_as_many_steps_as_the_tokens_fill() -> None:
    rows = RowStatistics(16000, mean_tokens=512)
    assert predict(rows=rows, packing=True, eval_fraction=0, num_train_epochs=1).num_steps == 250


def test_hours_cost_what_the_card_costs() -> None:
    speed = predict(gpu="h100", max_steps=1000)
    assert speed.hours and speed.usd == pytest.approx(3.0 * speed.hours)
    assert predict(gpu=replace(gpus()["h100"], usd_per_hour=None), max_steps=1000).usd is None


def test_rows_of_unknown_length_count_as_full() -> None:
    assert predict(rows=RowStatistics(10)).seconds_per_step == predict().seconds_per_step
    assert (
        predict(rows=RowStatistics(10, mean_tokens=9999)).seconds_per_step
        == predict().seconds_per_step
    )


def test_padding_is_computed_but_does_not_count() -> None:
    rows = RowStatistics(1000, mean_tokens=500)
    flash = {"attn_implementation": "flash_attention_2", "per_device_train_batch_size": 8}
    padded, packed = (
        predict(
            rows=rows, packing=packing, gradient_accumulation_steps=1, **flash
        ).tokens_per_second
        for packing in (False, True)
    )
    assert 0.5 < padded / packed < 0.6  # Unsloth #3672: 52 s / 96 s


@pytest.mark.parametrize(("at_once", "passes"), [(8, 1), (4, 4), (2, 8), (16, 4)])
def test_the_padding_of_rows_drawn_at_random_is_as_forecast(at_once: int, passes: int) -> None:
    draw, padded, count = random.Random(0), 0.0, 3000
    for _ in range(count):
        step = sorted(
            (50 + draw.expovariate(1 / 50) for _ in range(at_once * passes)), reverse=True
        )
        padded += sum(step[::at_once]) / passes
    job = JobSpec.parse(
        {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": passes}
    )
    batch = micro_batch(job, RowStatistics(1000, mean_tokens=100), sees_documents=False)
    assert batch.attended_tokens == pytest.approx(padded / count, rel=0.02)
    assert (batch.num_tokens, batch.num_data_tokens) == (
        at_once * batch.attended_tokens,
        at_once * 100,
    )


@pytest.mark.parametrize(
    "fields", [{"stage": "kto"}, {"shuffle": False}, {"stage": "grpo", "num_generations": 8}]
)
def test_rows_in_an_order_of_their_own_are_padded_as_they_come(fields: dict[str, object]) -> None:
    split = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    rows = RowStatistics(1000, mean_tokens=100)
    once, often = (
        micro_batch(
            JobSpec.parse(split | fields | {"gradient_accumulation_steps": count}),
            rows,
            sees_documents=False,
        )
        for count in (1, 4)
    )
    assert once == often


def test_packed_rows_attend_to_each_other_in_vain_without_flash_attention() -> None:
    few, many = (
        predict(packing=True, per_device_train_batch_size=size).tokens_per_second for size in (1, 8)
    )
    assert many < few / 2


# Where there is none


@pytest.mark.parametrize(
    "change",
    [{"compute_capability": (0, 0)}, {"flops": 0.0}, {"memory_bandwidth_bytes_per_second": 0.0}],
)
def test_a_cpu_and_an_unknown_card_have_no_forecast(change: dict[str, Any]) -> None:
    assert (
        predict_speed(JobSpec(), models()[LLAMA_8B].shape, replace(gpus()["h100"], **change))
        is None
    )


def test_every_optimizer_of_the_job_has_its_traffic() -> None:
    assert set(OPTIMIZER_TRAFFIC) | set(EXTRA_OPTIMIZERS) == set(get_args(OptimizerName))


@pytest.mark.parametrize("gpu", gpus())
def test_every_card_has_a_forecast(gpu: str) -> None:
    assert 10 < predict(gpu=gpu, method="qlora").tokens_per_second < 100_000


def test_json_holds_what_the_command_line_promises() -> None:
    assert set(predict().to_json()) == {"tokens_per_second", "seconds_per_step", "hours", "usd"}
