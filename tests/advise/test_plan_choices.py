"""Choices of single fields: what a plan sets where, on which card and for which rows."""

from dataclasses import replace

import pytest

from core.advise.search import MIN_GAIN
from core.models import gpus
from core.speed import RowStatistics
from tests.builders.advice_cases import (
    FULL_ROWS,
    LLAMA_8B,
    PLANNED_CASES,
    QWEN_1_5B,
    QWEN_SMALL,
    SHORT_ROWS,
    card,
    fastest,
    job_of,
    planned,
    reasons_of,
)

# Activations


def test_activations_are_kept_where_they_fit() -> None:
    after = planned(fastest(), LLAMA_8B, gpus()["h200"], SHORT_ROWS).job
    assert not after.gradient_checkpointing
    assert not after.activation_offloading


def test_main_memory_is_not_used_if_the_card_has_room() -> None:
    after = planned(fastest(), LLAMA_8B, card(21.5), RowStatistics(311, 42)).job
    assert after.gradient_checkpointing
    assert not after.activation_offloading


def test_fewer_rows_at_once_go_before_recomputing() -> None:
    job = fastest(per_device_train_batch_size=16, gradient_accumulation_steps=1)
    after = planned(job, LLAMA_8B, card(44, "l40s")).job
    assert not after.gradient_checkpointing
    assert after.per_device_train_batch_size < 16


def test_a_layer_of_several_is_checkpointed_before_all_are() -> None:
    too_few_to_compile_for = RowStatistics(50, 2000)
    after = planned(fastest(method="qlora"), LLAMA_8B, card(15), too_few_to_compile_for).job
    assert after.gradient_checkpointing
    assert after.checkpoint_every_n_layers > 1


def test_the_budget_is_the_largest_that_fits_despite_logits() -> None:
    after = planned(fastest(stage="orpo"), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS)
    others = [after.changed({"activation_memory_budget": budget}) for budget in (0.9, 0.5, 0.3)]
    fitting = [case.seconds_per_token() for case in others if case and case.fits]
    assert after.seconds_per_token() <= (1 + MIN_GAIN) * min(fitting)


def test_activations_are_kept_over_8_bit_layers_if_they_fit() -> None:
    job = fastest(stage="orpo", method="lora-8bit")
    after = planned(job, QWEN_1_5B, gpus()["l40s"], SHORT_ROWS)
    kept = after.changed({"gradient_checkpointing": False})
    assert kept
    assert not after.job.gradient_checkpointing or not kept.fits


@pytest.mark.parametrize("name", PLANNED_CASES)
def test_a_budget_without_use_is_taken_back(name: str) -> None:
    job, shape, gpu, rows = PLANNED_CASES[name]
    after = planned(job.model_copy(update={"activation_memory_budget": 0.3}), shape, gpu, rows).job
    is_used = after.torch_compile and not after.gradient_checkpointing
    assert after.activation_memory_budget == 1 or is_used


# Rows and attention


def test_short_rows_are_packed() -> None:
    after = planned(fastest(), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS).job
    assert (after.packing, after.attn_implementation) == (True, "varlen")


def test_long_rows_are_not_packed() -> None:
    after = planned(fastest(), QWEN_SMALL, gpus()["rtx-4090"], FULL_ROWS).job
    assert (after.packing, after.attn_implementation) == (False, "sdpa")


def test_rows_stay_apart_if_a_packed_row_holds_too_many() -> None:
    job = fastest(max_length=8192, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert not planned(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS).job.packing


def test_preference_pairs_are_never_packed() -> None:
    job = fastest(stage="dpo")
    assert not planned(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS).job.packing


def test_capped_scores_are_computed_by_eager_attention() -> None:
    assert planned(*PLANNED_CASES["capped scores"]).job.attn_implementation == "eager"


@pytest.mark.parametrize("profile", ["fastest", "smallest"])
def test_kto_keeps_two_rows_at_once(profile: str) -> None:
    job = job_of(stage="kto", profile=profile)
    after = planned(job, LLAMA_8B, gpus()["rtx-4090"], FULL_ROWS).job
    assert after.per_device_train_batch_size >= 2


# Precision and optimizer

PRECISIONS = [
    ("h200", "full", "bfloat16"),
    ("t4", "qlora", "float16"),
    ("t4", "full", "float32"),
    ("v100-16gb", "lora", "float16"),
]


@pytest.mark.parametrize(("gpu", "method", "dtype"), PRECISIONS)
def test_the_precision_is_that_of_the_card(gpu: str, method: str, dtype: str) -> None:
    after = planned(fastest(method=method), QWEN_SMALL, gpus()[gpu], SHORT_ROWS).job
    assert after.dtype == dtype


@pytest.mark.parametrize("gpu", ["t4", "v100-16gb"])
def test_an_old_card_has_neither_varlen_nor_compiled_layers(gpu: str) -> None:
    after = planned(fastest(method="qlora"), QWEN_SMALL, gpus()[gpu], SHORT_ROWS).job
    assert (after.attn_implementation, after.torch_compile) == ("sdpa", False)


@pytest.mark.parametrize(("size", "optim"), [(24, "adamw_torch_fused"), (12, "adamw_8bit")])
def test_8_bit_states_are_used_if_full_ones_do_not_fit(size: float, optim: str) -> None:
    assert planned(fastest(method="full"), QWEN_1_5B, card(size), FULL_ROWS).job.optim == optim


def test_an_optimizer_that_takes_other_steps_is_left_alone() -> None:
    after = planned(fastest(optim="adafactor"), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS)
    assert after.job.optim == "adafactor"


# Compiling


@pytest.mark.parametrize(("num_rows", "is_compiled"), [(50, False), (50_000, True)])
def test_layers_are_compiled_only_for_a_long_run(num_rows: int, is_compiled: bool) -> None:
    rows = RowStatistics(num_rows, mean_tokens=300)
    after = planned(fastest(), LLAMA_8B, gpus()["a100-80gb"], rows).job
    assert after.torch_compile is is_compiled


def test_a_run_of_unknown_length_is_not_compiled() -> None:
    assert not planned(fastest(), LLAMA_8B, gpus()["a100-80gb"]).job.torch_compile


LONG_RUN = RowStatistics(50_000, mean_tokens=300)


def test_a_machine_that_cannot_compile_is_planned_without() -> None:
    gpu = replace(gpus()["a100-80gb"], lacks_for_compiling="there is no C compiler")
    assert not planned(fastest(), LLAMA_8B, gpu, LONG_RUN).job.torch_compile
    reason = reasons_of(fastest(), LLAMA_8B, gpu, LONG_RUN)["torch_compile"]
    assert reason == "Not compiled: there is no C compiler."


def test_compiled_layers_keep_a_share_that_fits() -> None:
    after = planned(fastest(), LLAMA_8B, gpus()["rtx-4090"], LONG_RUN).job
    assert after.torch_compile
    assert not after.gradient_checkpointing
    assert 0 < after.activation_memory_budget < 1


@pytest.mark.parametrize("every_n_layers", [1, 2, 3, 4])
def test_keeping_a_share_is_faster_than_checkpointing(every_n_layers: int) -> None:
    after = planned(fastest(), LLAMA_8B, gpus()["rtx-4090"], LONG_RUN)
    checkpointed = after.changed(
        {"gradient_checkpointing": True, "checkpoint_every_n_layers": every_n_layers}
    )
    assert checkpointed
    assert not checkpointed.fits or after.seconds_per_token() < checkpointed.seconds_per_token()


def test_layers_that_the_user_has_compiled_may_keep_a_share() -> None:
    job = fastest(torch_compile=True)  # for a run of unknown length, which a plan would not compile
    after = planned(job, LLAMA_8B, gpus()["rtx-4090"], None, frozenset({"torch_compile"})).job
    assert after.activation_memory_budget in (0.9, 0.5)
    assert not after.gradient_checkpointing


# The reference model


@pytest.mark.parametrize(
    ("method", "epochs", "is_precomputed"),
    [("lora", 1, False), ("lora", 2, True), ("full", 1, True)],
)
def test_a_reference_is_precomputed_if_rows_are_read_twice(
    method: str, epochs: int, is_precomputed: bool
) -> None:
    job = fastest(stage="dpo", method=method, num_train_epochs=epochs)
    after = planned(job, QWEN_SMALL, gpus()["rtx-4090"]).job
    assert after.precompute_ref_log_probs is is_precomputed


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("steps", [10, 20_000])
def test_a_reference_is_precomputed_only_if_that_is_sooner(method: str, steps: int) -> None:
    job = fastest(stage="dpo", method=method, max_steps=steps)
    after = planned(job, QWEN_SMALL, gpus()["rtx-4090"], FULL_ROWS)
    other = after.changed({"precompute_ref_log_probs": not after.job.precompute_ref_log_probs})
    assert other
    assert after.seconds_per_token() < other.seconds_per_token()


# Other machines, the other profile


def test_a_processor_gets_nothing_that_needs_a_card() -> None:
    after = planned(*PLANNED_CASES["processor"]).job
    assert (after.dtype, after.optim) == ("float32", "adamw_torch_fused")
    assert not after.torch_compile
    assert not after.activation_offloading


def test_a_card_of_unknown_speed_gets_a_plan_too() -> None:
    unknown = replace(gpus()["h100"], flops=0.0)
    assert not planned(fastest(), LLAMA_8B, unknown, SHORT_ROWS).job.gradient_checkpointing


def test_the_profile_smallest_takes_less_than_fastest() -> None:
    _, shape, gpu, rows = PLANNED_CASES["8B qlora, T4"]
    smallest = planned(job_of(method="qlora", profile="smallest"), shape, gpu, rows)
    assert smallest.memory.total_bytes < planned(*PLANNED_CASES["8B qlora, T4"]).memory.total_bytes


def test_the_profile_smallest_keeps_as_little_as_it_can() -> None:
    after = planned(*PLANNED_CASES["smallest"]).job
    assert (after.per_device_train_batch_size, after.gradient_accumulation_steps) == (1, 16)
    assert (after.gradient_checkpointing, after.checkpoint_every_n_layers) == (True, 1)
    assert (after.optim, after.packing) == ("paged_adamw_8bit", False)
