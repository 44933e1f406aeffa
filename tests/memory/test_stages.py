"""The memory of every stage: what it adds to supervised fine-tuning, and what the estimate promises for all."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.job import JobSpec
from core.memory import MemoryEstimate, estimate
from core.memory.program.from_job import program_of
from core.models import Gpu
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.memory.test_estimate import (
    BYTES,
    CONTRACT_NAMES,
    CPU,
    GPU,
    LLAMA,
    SMALL,
    card,
    llama,
    sizes_of,
)

PROMPTED = [stage.id for stage in STAGES.values() if stage.generates]
PAIRED = ["reward", "dpo", "orpo", "cpo"]
SMALL_LLAMA = llama(**SMALL)


def job(stage: str, method: str = "lora", **fields: object) -> JobSpec:
    """A job of this stage: 8 rows a step, as many as answers are drawn for a prompt."""
    usual = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_length": 1024}
    return JobSpec.parse({**usual, "stage": stage, "method": method, **fields})


def predict(stage: str, method: str = "lora", **fields: object) -> MemoryEstimate:
    return estimate(job(stage, method, **fields), LLAMA, GPU)


@pytest.mark.parametrize("gpu", [GPU, card((7, 5)), CPU], ids=["h100", "t4", "cpu"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_components_of_every_stage_add_up(stage: str, method: str, gpu: Gpu) -> None:
    found = estimate(job(stage, method), SMALL_LLAMA, gpu)
    assert sum(part.bytes for part in found.components) == found.total_bytes
    assert {part.name for part in found.components} <= CONTRACT_NAMES
    assert found.peak_allocated_bytes == max(found.phases.values())
    assert found.low_bytes <= found.total_bytes <= found.high_bytes and found.why
    assert ("generation" in found.phases) == STAGES[stage].generates


# Pairs


@pytest.mark.parametrize("stage", PAIRED)
def test_a_pair_sends_two_sequences_through_the_model_at_once(stage: str) -> None:
    assert program_of(job(stage), LLAMA, GPU).rows == 2 * program_of(job("sft"), LLAMA, GPU).rows


def test_a_reward_model_has_no_logits_and_no_head_of_words() -> None:
    untied = llama(tie_word_embeddings=False)
    found = estimate(job("reward"), untied, GPU)
    assert "logits" not in sizes_of(found)
    assert (
        estimate(job("sft"), untied, GPU).num_parameters - found.num_parameters
        == 128256 * 2048 - 2048
    )


def test_orpo_writes_out_all_logits_where_dpo_does_not() -> None:
    tokens = 2 * 2 * 1024
    assert (
        predict("orpo").peak_allocated_bytes - predict("dpo").peak_allocated_bytes
        > 8 * tokens * 128256
    )


# References


@pytest.mark.parametrize("stage", ["dpo", "kto", "rloo"])
def test_the_reference_of_full_training_is_a_copy_and_that_of_an_adapter_is_none(
    stage: str,
) -> None:
    copied = sizes_of(predict(stage, "full"))
    assert copied["reference_model"] == pytest.approx(copied["weights"], rel=1e-3)
    assert "reference_model" not in sizes_of(predict(stage, "lora"))


def test_answers_asked_for_beforehand_need_no_reference() -> None:
    kept, precomputed = (
        predict("dpo", "full", precompute_ref_log_probs=flag) for flag in (False, True)
    )
    saved = kept.peak_allocated_bytes - precomputed.peak_allocated_bytes
    assert saved == pytest.approx(sizes_of(kept)["reference_model"], rel=1e-3)


def test_grpo_without_a_pull_back_asks_no_reference() -> None:
    assert "reference_model" not in sizes_of(predict("grpo", "full", beta=0.0))
    assert "reference_model" in sizes_of(predict("grpo", "full", beta=0.04))


def test_kto_asks_twice_without_a_graph_and_trains_on_the_rows_alone() -> None:
    program = program_of(job("kto"), LLAMA, GPU)
    assert [each.moment for each in program.passes] == ["before", "after"]
    assert program.rows == 2


# Answers


def test_the_cache_holds_keys_and_values_of_every_answer_of_a_step() -> None:
    found = predict("grpo", max_length=4096, max_completion_length=512)
    keys_and_values = 2 * 16 * 8 * 64 * 2  # layers, key heads, numbers per head, bytes
    assert sizes_of(found)["generation_cache"] >= 8 * (4096 - 512) * keys_and_values
    assert found.binding_phase == "generation"


def test_only_the_answers_are_scored() -> None:
    assert program_of(job("grpo", max_completion_length=100), LLAMA, GPU).num_scored_tokens == 200


def test_a_reward_model_is_as_large_as_its_own_shape_says() -> None:
    asked = job("grpo", reward_model="judge")
    large, small = (
        estimate(asked, LLAMA, GPU, reward_shape=shape) for shape in (None, SMALL_LLAMA)
    )
    assert sizes_of(large)["reward_model"] > 10 * sizes_of(small)["reward_model"]


def test_ppo_keeps_four_models_and_says_that_it_is_an_estimate() -> None:
    found = predict("ppo", "full")
    assert {"reference_model", "value_model", "reward_model"} <= set(sizes_of(found))
    assert found.num_trainable_parameters > 1.9 * LLAMA.num_parameters
    assert any("estimate" in part.note for part in found.components if part.name == "value_model")


# Memory against speed


def test_one_layer_in_n_lies_between_none_and_all() -> None:
    kept = predict("sft", gradient_checkpointing=False).peak_allocated_bytes
    totals = [predict("sft", checkpoint_every_n_layers=n).peak_allocated_bytes for n in (1, 2, 4)]
    assert totals == sorted(totals) and totals[-1] < kept


@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloading_keeps_few_activations_on_the_device(checkpointing: bool) -> None:
    fields: dict[str, Any] = {"gradient_checkpointing": checkpointing, "max_length": 4096}
    kept, away = (predict("sft", activation_offloading=flag, **fields) for flag in (False, True))
    assert away.peak_allocated_bytes < kept.peak_allocated_bytes
    assert away.phases["forward"] <= kept.phases["forward"]


def test_fewer_layers_that_train_take_less() -> None:
    totals = [
        predict("sft", "freeze", num_trainable_layers=count).total_bytes for count in (1, 2, 8)
    ]
    assert totals == sorted(totals) and totals[-1] < predict("sft", "full").total_bytes
    assert (
        predict("sft", "freeze", num_trainable_layers=99).num_trainable_parameters
        < LLAMA.num_parameters
    )


def test_a_module_trained_whole_is_a_copy_with_gradient_and_states() -> None:
    untied, matrix = llama(tie_word_embeddings=False), 128256 * 2048
    plain, saved = (
        estimate(job("sft", modules_to_save=name), untied, GPU) for name in ("", "lm_head")
    )
    assert saved.num_trainable_parameters - plain.num_trainable_parameters == matrix
    assert saved.phases["optimizer_step"] - plain.phases["optimizer_step"] == pytest.approx(
        matrix * 2 * 4, rel=0.01
    )


def test_tied_modules_share_their_copy() -> None:
    one, both = (
        predict("sft", modules_to_save=names) for names in ("lm_head", "lm_head,embed_tokens")
    )
    assert one.num_trainable_parameters == both.num_trainable_parameters


def test_packed_rows_without_a_mask_take_less_than_with_one() -> None:
    masked, varlen = (
        predict("sft", packing=True, attn_implementation=name) for name in ("sdpa", "varlen")
    )
    assert varlen.peak_allocated_bytes < masked.peak_allocated_bytes


def test_liger_keeps_less_per_layer() -> None:
    plain, liger = (
        predict("sft", gradient_checkpointing=False, use_liger_kernel=flag)
        for flag in (False, True)
    )
    assert sizes_of(liger)["activations"] < 0.9 * sizes_of(plain)["activations"]


# Properties

jobs = st.fixed_dictionaries(
    {
        "gradient_checkpointing": st.booleans(),
        "per_device_train_batch_size": st.sampled_from([2, 4]),
        "gradient_accumulation_steps": st.sampled_from([2, 4]),
        "max_length": st.integers(300, 700),
        "lora_r": st.integers(1, 32),
        "num_generations": st.just(2),
    }
)
RAISED = {"per_device_train_batch_size": 2, "max_length": 1, "lora_r": 1, "num_generations": 2}
"""Field -> factor, or 1 to add one."""


@settings(max_examples=40, deadline=None)
@given(
    stage=st.sampled_from(list(STAGES)),
    method=st.sampled_from(list(METHODS)),
    fields=jobs,
    field=st.sampled_from(list(RAISED)),
    gpu=st.sampled_from([GPU, card((7, 5))]),
)
def test_more_of_anything_never_lowers_the_estimate_of_a_stage(
    stage: str, method: str, fields: dict[str, Any], field: str, gpu: Gpu
) -> None:
    raised = fields[field] * RAISED[field] if RAISED[field] > 1 else fields[field] + 1
    less, more = (
        estimate(job(stage, method, **fields | {field: value}), SMALL_LLAMA, gpu)
        for value in (fields[field], raised)
    )
    for name in BYTES:
        assert getattr(more, name) >= getattr(less, name), name
