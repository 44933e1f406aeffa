"""Components, verdict and range of an estimate, and promises that hold for every job."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.job import JobSpec
from core.memory import COMPONENTS, Component, MemoryEstimate, estimate
from core.memory.context import LIBRARIES_ON_CPU, context_of
from core.memory.extrapolate import extrapolate_peaks
from core.memory.program import program_of
from core.memory.step import PHASES
from core.models import Gpu, gpus, models
from tests.builders.estimates import (
    CPU,
    GIB,
    GPU,
    LLAMA,
    METHODS_AND_OPTIMIZERS,
    MIB,
    SMALL,
    T4,
    assert_no_lower,
    card,
    component_bytes,
    llama,
    predict,
)

VOCABULARY, HIDDEN = LLAMA.vocab_size, LLAMA.hidden_size


# Components


CONTRACT_NAMES = (
    "weights",
    "quantization_state",
    "adapters",
    "gradients",
    "optimizer_states",
    "activations",
    "logits",
    "reference_model",
    "value_model",
    "reward_model",
    "generation_cache",
    "temporary",
    "cuda_context",
    "fragmentation",
)


def test_the_components_are_those_of_the_contract() -> None:
    assert tuple(COMPONENTS) == CONTRACT_NAMES


def test_the_type_of_components_names_all_of_them() -> None:
    assert get_args(Component) == CONTRACT_NAMES


@pytest.fixture(scope="module", params=[GPU, T4, CPU], ids=["h100", "t4", "cpu"])
def predictions(request: pytest.FixtureRequest) -> list[MemoryEstimate]:
    """Estimates of every method with every optimizer that trains it, on a card."""
    return [
        predict(gpu=request.param, method=method, optim=optim)
        for method, optim in METHODS_AND_OPTIMIZERS
    ]


def test_the_components_add_up_to_the_total(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert sum(part.bytes for part in found.components) == found.total_bytes


def test_no_component_is_empty(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert all(part.bytes > 0 for part in found.components)


def test_the_total_lies_in_its_range(predictions: list[MemoryEstimate]) -> None:
    for found in predictions:
        assert found.low_bytes <= found.total_bytes <= found.high_bytes


def test_an_estimate_counts_the_parameters_of_every_preset() -> None:
    for model in models().values():
        found = predict(model.shape, gpus()["t4"], method="qlora")
        assert found.num_parameters == model.shape.num_parameters, model.id


def test_every_preset_model_has_all_phases() -> None:
    for model in models().values():
        found = predict(model.shape, gpus()["t4"], method="qlora")
        assert set(found.phases) == set(PHASES) - {"generation"}, model.id


def test_the_json_has_the_keys_of_the_contract() -> None:
    assert set(predict().to_json()) >= {
        "components",
        "phases",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "total_bytes",
        "capacity_bytes",
        "verdict",
        "num_parameters",
        "num_trainable_parameters",
    }


def test_a_component_in_the_json_has_a_name_bytes_and_a_note() -> None:
    (weights, *_) = predict().to_json()["components"]
    assert set(weights) == {"name", "bytes", "note"}


# Known sizes

LLAMA_8B = llama(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, tie_word_embeddings=False
)


def full_8b() -> MemoryEstimate:
    return predict(LLAMA_8B, method="full", gradient_accumulation_steps=1)


def test_weights_of_an_8b_model_take_2_bytes_each() -> None:
    assert component_bytes(full_8b())["weights"] == pytest.approx(8_030_261_248 * 2, rel=1e-5)


def test_full_fine_tuning_of_an_8b_model_takes_60_gib() -> None:
    assert full_8b().peak_allocated_bytes / GIB == pytest.approx(59.9, abs=0.1)


def test_lora_of_an_8b_model_trains_its_published_number() -> None:
    assert predict(LLAMA_8B, method="lora").num_trainable_parameters == 41_943_040


def test_a_tied_head_counts_once() -> None:
    untied = predict(llama(tie_word_embeddings=False))
    assert untied.num_parameters - predict().num_parameters == VOCABULARY * HIDDEN


def test_accumulated_gradients_live_through_the_next_forward_pass() -> None:
    once, twice = (predict(method="full", gradient_accumulation_steps=steps) for steps in (1, 2))
    assert twice.phases["forward"] >= once.phases["forward"] + 2 * once.num_parameters


def test_checkpointing_saves_most_activations() -> None:
    kept, recomputed = (
        component_bytes(predict(gradient_checkpointing=flag))["activations"]
        for flag in (False, True)
    )
    assert recomputed < 0.2 * kept


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_compiled_layers_save_less(method: str) -> None:
    compiled, plain = (
        predict(method=method, gradient_checkpointing=False, torch_compile=flag).phases["backward"]
        for flag in (True, False)
    )
    assert compiled < 0.9 * plain


def test_compiling_does_not_change_the_loaded_model() -> None:
    assert predict(torch_compile=True).phases["load"] == predict().phases["load"]


def test_capped_scores_are_saved_by_eager_and_not_by_flex_attention() -> None:
    gemma = models()["google/gemma-2-9b"].shape
    flex, eager = (
        predict(gemma, method="qlora", max_length=8192, attn_implementation=kernel)
        for kernel in ("flex_attention", "eager")
    )
    assert 3 * flex.phases["backward"] < eager.phases["backward"]


def test_eager_attention_in_bfloat16_copies_the_scores_to_float32() -> None:
    program = program_of(JobSpec.parse({"attn_implementation": "eager"}), LLAMA, GPU)
    bfloat16, float16 = (
        extrapolate_peaks(replace(program, is_float16=flag)).by_phase["eval"].total()
        for flag in (False, True)
    )
    num_scores = program.batch_size * LLAMA.num_attention_heads * program.sequence_length**2
    assert bfloat16 - float16 == 2 * num_scores  # float16 has a 16-bit copy at its peak instead


def test_paged_states_are_not_in_the_allocated_peak() -> None:
    paged, plain = (
        predict(method="full", optim=name) for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    assert paged.peak_allocated_bytes < plain.peak_allocated_bytes - plain.num_parameters


def test_paged_states_are_in_the_total() -> None:
    paged, plain = (
        predict(method="full", optim=name) for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    assert paged.total_bytes == pytest.approx(plain.total_bytes, rel=0.01)


def test_nothing_is_paged_without_a_gpu() -> None:
    paged, plain = (
        predict(method="full", optim=name, gpu=CPU) for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    assert paged == plain


def test_a_cpu_has_no_gaps_and_counts_the_whole_process() -> None:
    found = predict(gpu=CPU)
    assert "fragmentation" not in component_bytes(found)
    assert found.total_bytes == found.peak_allocated_bytes + LIBRARIES_ON_CPU.expected_bytes


def test_weights_on_a_cpu_are_float32() -> None:
    found = predict(gpu=CPU)
    assert component_bytes(found)["weights"] >= 4 * found.num_parameters


def test_short_rows_take_less_than_max_length() -> None:
    short = estimate(JobSpec.parse({"max_length": 4096}), LLAMA, GPU, longest_row_tokens=512)
    assert short.peak_allocated_bytes == predict(max_length=512).peak_allocated_bytes


def test_the_context_of_a_t4_is_the_measured_one() -> None:
    assert context_of(T4).expected_bytes == 141 * MIB


# Verdict


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.99, "does_not_fit"), (1.03, "tight"), (1.1, "fits")]
)
def test_the_verdict_compares_with_the_capacity(share: float, verdict: str) -> None:
    needed = predict().total_bytes
    assert predict(gpu=card(capacity_bytes=int(needed * share))).verdict == verdict


@pytest.mark.parametrize(
    ("optim", "spare_bytes", "verdict"),
    [
        ("paged_adamw_8bit", 1, "tight"),
        ("paged_adamw_8bit", -1, "does_not_fit"),
        ("adamw_8bit", 1, "does_not_fit"),
    ],
)
def test_a_job_that_fits_only_by_paging_is_tight(
    optim: str, spare_bytes: int, verdict: str
) -> None:
    paged = predict(method="full", optim="paged_adamw_8bit")
    needed = paged.total_bytes - paged.pageable_bytes
    gpu = card(capacity_bytes=needed + spare_bytes)
    assert predict(method="full", optim=optim, gpu=gpu).verdict == verdict


# Properties

jobs = st.fixed_dictionaries(
    {
        "attn_implementation": st.sampled_from(["sdpa", "eager", "flash_attention_2"]),
        "gradient_checkpointing": st.booleans(),
        "packing": st.booleans(),
        "per_device_train_batch_size": st.integers(1, 8),
        "max_length": st.integers(8, 2048),
        "lora_r": st.integers(1, 128),
        "gradient_accumulation_steps": st.integers(1, 3),
    }
)
methods_and_optimizers = st.sampled_from(METHODS_AND_OPTIMIZERS)
cards = st.sampled_from([GPU, card((8, 6)), T4, CPU])


@settings(max_examples=25, deadline=None)
@given(
    suited=methods_and_optimizers,
    fields=jobs,
    gpu=cards,
    field=st.sampled_from(["per_device_train_batch_size", "max_length", "lora_r"]),
)
def test_a_larger_batch_length_or_rank_never_lowers_the_estimate(
    suited: tuple[str, str], fields: dict[str, Any], gpu: Gpu, field: str
) -> None:
    shape = llama(**SMALL)
    fields |= dict(zip(("method", "optim"), suited, strict=True))
    more = predict(shape, gpu, **fields | {field: fields[field] + 1})
    assert_no_lower(more, predict(shape, gpu, **fields))


@settings(max_examples=25, deadline=None)
@given(
    suited=methods_and_optimizers,
    fields=jobs,
    gpu=cards,
    field=st.sampled_from(["num_hidden_layers", "intermediate_size", "vocab_size"]),
    value=st.integers(1, 40),
)
def test_more_parameters_never_lower_the_estimate(
    suited: tuple[str, str], fields: dict[str, Any], gpu: Gpu, field: str, value: int
) -> None:
    fields |= dict(zip(("method", "optim"), suited, strict=True))
    less, more = (llama(**SMALL | {field: size}) for size in (value, value + 1))
    assert_no_lower(predict(more, gpu, **fields), predict(less, gpu, **fields))


def test_an_estimate_is_the_same_every_time() -> None:
    job = JobSpec.parse({"method": "qlora"})
    first = estimate(job, LLAMA, GPU)
    estimate.cache_clear()
    extrapolate_peaks.cache_clear()
    assert estimate(job, LLAMA, GPU) == first
