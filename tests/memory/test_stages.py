"""Memory of every stage: what it adds to supervised fine-tuning, and what holds for all."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.memory import COMPONENTS, MemoryEstimate, estimate
from core.memory.program import program_of
from core.models import Gpu
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.estimates import (
    CPU,
    GPU,
    LLAMA,
    SMALL_LLAMA,
    T4,
    assert_no_lower,
    component_bytes,
    llama,
)
from tests.builders.estimates import predict_stage as predict
from tests.builders.estimates import stage_job as job

GENERATING = [stage.id for stage in STAGES.values() if stage.generates]
PAIRED = ["reward", "dpo", "orpo", "cpo"]
VOCABULARY, HIDDEN = LLAMA.vocab_size, LLAMA.hidden_size


@pytest.fixture(scope="module", params=STAGES)
def predictions(request: pytest.FixtureRequest) -> list[MemoryEstimate]:
    """Estimates of a stage with every method, on every kind of card."""
    jobs_of_stage = [job(request.param, method) for method in METHODS]
    return [estimate(each, SMALL_LLAMA, gpu) for each in jobs_of_stage for gpu in (GPU, T4, CPU)]


def test_the_components_of_every_stage_add_up(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert sum(part.bytes for part in found.components) == found.total_bytes


def test_the_peak_of_every_stage_is_that_of_a_phase(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert found.peak_allocated_bytes == max(found.phases.values())


def test_the_total_of_every_stage_lies_in_its_range(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert found.low_bytes <= found.total_bytes <= found.high_bytes


def test_the_range_of_every_stage_has_a_reason(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert found.why


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_generate_have_a_phase_for_it(stage: str) -> None:
    phases = estimate(job(stage), SMALL_LLAMA, GPU).phases
    assert ("generation" in phases) == STAGES[stage].generates


# Pairs


@pytest.mark.parametrize("stage", PAIRED)
def test_a_pair_runs_two_sequences_through_the_model(stage: str) -> None:
    paired, single = (program_of(job(name), LLAMA, GPU) for name in (stage, "sft"))
    assert paired.batch_size == 2 * single.batch_size


def test_a_reward_model_has_no_logits() -> None:
    assert "logits" not in component_bytes(predict("reward"))


def test_a_reward_model_scores_instead_of_naming_words() -> None:
    untied = llama(tie_word_embeddings=False)
    words, score = (estimate(job(stage), untied, GPU) for stage in ("sft", "reward"))
    assert words.num_parameters - score.num_parameters == VOCABULARY * HIDDEN - HIDDEN


def test_orpo_stores_all_logits_where_dpo_does_not() -> None:
    num_tokens = 2 * 2 * 1024
    more_bytes = predict("orpo").peak_allocated_bytes - predict("dpo").peak_allocated_bytes
    assert more_bytes > 8 * num_tokens * VOCABULARY


# References


@pytest.mark.parametrize("stage", ["dpo", "kto", "rloo"])
def test_the_reference_of_full_training_is_a_copy(stage: str) -> None:
    sizes = component_bytes(predict(stage, "full"))
    assert sizes["reference_model"] == pytest.approx(sizes["weights"], rel=1e-3)


@pytest.mark.parametrize("stage", ["dpo", "kto", "rloo"])
def test_the_reference_of_an_adapter_takes_no_memory(stage: str) -> None:
    assert "reference_model" not in component_bytes(predict(stage, "lora"))


def test_precomputed_log_probabilities_need_no_reference() -> None:
    kept, precomputed = (
        predict("dpo", "full", precompute_ref_log_probs=flag) for flag in (False, True)
    )
    saved = kept.peak_allocated_bytes - precomputed.peak_allocated_bytes
    assert saved == pytest.approx(component_bytes(kept)["reference_model"], rel=1e-3)


@pytest.mark.parametrize(("beta", "has_reference"), [(0.0, False), (0.04, True)])
def test_grpo_needs_a_reference_for_a_penalty_only(beta: float, has_reference: bool) -> None:
    sizes = component_bytes(predict("grpo", "full", beta=beta))
    assert ("reference_model" in sizes) == has_reference


def test_kto_runs_twice_without_a_graph() -> None:
    program = program_of(job("kto"), LLAMA, GPU)
    assert [each.when for each in program.no_grad_forwards] == ["before", "after"]


@pytest.mark.parametrize("rows", [4, 16])
def test_an_evaluation_of_kto_takes_the_memory_of_two_rows(rows: int) -> None:
    few = predict("kto", per_device_train_batch_size=2).phases["eval"]
    assert predict("kto", per_device_train_batch_size=rows).phases["eval"] == few


ONE_ROW = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_an_evaluation_takes_all_answers_to_a_prompt(stage: str) -> None:
    without = predict(stage, eval_fraction=0.0, **ONE_ROW).phases["eval"]
    evaluated = predict(stage, eval_fraction=0.1, num_generations=8, **ONE_ROW).phases["eval"]
    assert evaluated > without
    assert (
        predict(stage, eval_fraction=0.1, num_generations=4, **ONE_ROW).phases["eval"] < evaluated
    )


def test_kto_trains_on_its_own_rows_only() -> None:
    assert program_of(job("kto"), LLAMA, GPU).batch_size == 2


# Answers


def grpo_with_long_prompts() -> MemoryEstimate:
    return predict("grpo", max_length=4096, max_completion_length=512)


def test_the_cache_holds_keys_and_values_of_every_answer_of_a_step() -> None:
    keys = LLAMA.num_hidden_layers * LLAMA.num_key_value_heads * LLAMA.head_dim
    per_token = 2 * keys * 2  # keys and values, 2 bytes each
    cache_bytes = component_bytes(grpo_with_long_prompts())["generation_cache"]
    assert cache_bytes >= 8 * (4096 - 512) * per_token


def test_the_cache_of_long_prompts_makes_the_peak() -> None:
    assert grpo_with_long_prompts().binding_phase == "generation"


def test_only_the_answers_are_scored() -> None:
    assert program_of(job("grpo", max_completion_length=100), LLAMA, GPU).num_scored_tokens == 200


def test_a_reward_model_counts_as_large_as_the_trained_one() -> None:
    sizes = component_bytes(predict("grpo", "full", reward_model="judge"))
    assert sizes["reward_model"] == pytest.approx(sizes["weights"], rel=1e-3)


def test_ppo_keeps_three_more_models() -> None:
    extra = {"reference_model", "value_model", "reward_model"}
    assert extra <= set(component_bytes(predict("ppo", "full")))


def test_ppo_trains_its_value_model_too() -> None:
    assert predict("ppo", "full").num_trainable_parameters > 1.9 * LLAMA.num_parameters


def test_the_value_model_says_that_it_is_an_estimate() -> None:
    assert "estimate" in COMPONENTS["value_model"]


# Memory against speed


def test_one_layer_in_n_lies_between_none_and_all() -> None:
    every, second, fourth = (
        predict("sft", checkpoint_every_n_layers=n).peak_allocated_bytes for n in (1, 2, 4)
    )
    kept = predict("sft", gradient_checkpointing=False).peak_allocated_bytes
    assert every <= second <= fourth < kept


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloading_keeps_few_activations_on_the_device(checkpointing: bool, phase: str) -> None:
    fields: dict[str, Any] = {"gradient_checkpointing": checkpointing, "max_length": 4096}
    kept, offloaded = (
        predict("sft", activation_offloading=flag, **fields).phases for flag in (False, True)
    )
    assert offloaded[phase] <= kept[phase]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloading_lowers_the_peak(checkpointing: bool) -> None:
    fields: dict[str, Any] = {"gradient_checkpointing": checkpointing, "max_length": 4096}
    kept, offloaded = (
        predict("sft", activation_offloading=flag, **fields) for flag in (False, True)
    )
    assert offloaded.peak_allocated_bytes < kept.peak_allocated_bytes


def test_fewer_trained_layers_take_less() -> None:
    one, two, eight = (
        predict("sft", "freeze", num_trainable_layers=count).total_bytes for count in (1, 2, 8)
    )
    assert one <= two <= eight < predict("sft", "full").total_bytes


def test_frozen_embeddings_do_not_train() -> None:
    found = predict("sft", "freeze", num_trainable_layers=99)
    assert found.num_trainable_parameters < LLAMA.num_parameters


def with_saved_head(modules_to_save: str) -> MemoryEstimate:
    untied = llama(tie_word_embeddings=False)
    return estimate(job("sft", modules_to_save=modules_to_save), untied, GPU)


def test_a_module_to_save_trains_in_full() -> None:
    plain, saved = with_saved_head(""), with_saved_head("lm_head")
    more = saved.num_trainable_parameters - plain.num_trainable_parameters
    assert more == VOCABULARY * HIDDEN


def test_a_module_to_save_has_copy_gradient_and_states() -> None:
    plain, saved = (with_saved_head(name).phases["optimizer_step"] for name in ("", "lm_head"))
    assert saved - plain == pytest.approx(VOCABULARY * HIDDEN * 2 * 4, rel=0.01)


def test_tied_modules_share_their_copy() -> None:
    one, both = (
        predict("sft", modules_to_save=names).num_trainable_parameters
        for names in ("lm_head", "lm_head,embed_tokens")
    )
    assert one == both


def test_packed_rows_without_a_mask_take_less_than_with_one() -> None:
    masked, varlen = (
        predict("sft", packing=True, attn_implementation=name).peak_allocated_bytes
        for name in ("sdpa", "varlen")
    )
    assert varlen < masked


def test_liger_saves_less_per_layer() -> None:
    plain, liger = (
        predict("sft", gradient_checkpointing=False, use_liger_kernel=flag)
        for flag in (False, True)
    )
    assert component_bytes(liger)["activations"] < 0.9 * component_bytes(plain)["activations"]


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
    gpu=st.sampled_from([GPU, T4]),
)
def test_more_of_anything_never_lowers_the_estimate_of_a_stage(
    stage: str, method: str, fields: dict[str, Any], field: str, gpu: Gpu
) -> None:
    raised = fields[field] * RAISED[field] if RAISED[field] > 1 else fields[field] + 1
    less, more = (
        estimate(job(stage, method, **fields | {field: value}), SMALL_LLAMA, gpu)
        for value in (fields[field], raised)
    )
    assert_no_lower(more, less)
