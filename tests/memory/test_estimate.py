"""The memory estimate: its rooms one by one, then what it promises."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.job import JobSpec, OptimizerName, SpecError
from core.memory import MemoryEstimate, estimate
from core.memory.context import context_of
from core.memory.extrapolate import find_peaks
from core.memory.program.from_job import program_of
from core.memory.program.optimizers import OPTIMIZERS
from core.memory.program.quantization import Quantization
from core.memory.simulator.allocator import LARGE_SEGMENT_BYTES, Allocator
from core.memory.simulator.autograd import PASSED_ON, Tape, WeightGradient
from core.memory.simulator.device_memory import Heap
from core.memory.step import PHASES, Simulation
from core.models import Gpu, ModelShape, gpus, models
from core.training.contract.methods import METHODS

MIB, GIB = 2**20, 2**30
SFT_PHASES = set(PHASES) - {"generation"}
CONTRACT_NAMES = {
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
}


def card(compute_capability: tuple[int, int] = (9, 0), capacity_bytes: int = 80 * GIB) -> Gpu:
    """A GPU; (0, 0) stands for a CPU."""
    return Gpu(
        "card",
        "Card",
        capacity_bytes,
        compute_capability,
        compute_capability >= (8, 0),
        1e12,
        1e14,
        None,
        (),
    )


def llama(**config: object) -> ModelShape:
    """A Llama of a billion parameters, or with other sizes."""
    sizes = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    return ModelShape.from_config(sizes | config)


def gemma3(num_hidden_layers: int = 26) -> ModelShape:
    """A Gemma 3, five of whose six layers attend within a window."""
    return ModelShape.from_config(
        {
            "model_type": "gemma3_text",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "vocab_size": 262144,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
        }
    )


LLAMA, GPU, CPU = llama(), card(), card((0, 0))
SUITED = [
    (method.id, optim)
    for method in METHODS.values()
    for optim, record in OPTIMIZERS.items()
    if not (method.trains_adapter and record.projection_rank)  # an adapter has a low rank already
]
"""Methods and the optimizers that train them."""


def predict(shape: ModelShape = LLAMA, gpu: Gpu = GPU, **fields: object) -> MemoryEstimate:
    return estimate(JobSpec.parse(fields), shape, gpu)


def sizes_of(found: MemoryEstimate) -> Mapping[str, int]:
    return {part.name: part.bytes for part in found.components}


# Quantisation and optimizers


@pytest.mark.parametrize(
    ("stored", "bits"),
    [(Quantization(4), 4.5), (Quantization(4, True), 4.127), (Quantization(8), 8.0)],
)
def test_a_quantised_number_takes_its_bits_and_its_share_of_the_scales(
    stored: Quantization, bits: float
) -> None:
    num_bytes = sum(size for size, _ in stored.storage(8192, 8192))
    assert num_bytes * 8 / 8192**2 == pytest.approx(bits, abs=0.005)


def test_only_8_bit_layers_keep_their_inputs_from_checkpointing() -> None:
    assert (
        predict(method="lora-8bit").phases["backward"]
        > 1.5 * predict(method="qlora").phases["backward"]
    )


def test_every_optimizer_of_the_job_has_a_record() -> None:
    assert set(OPTIMIZERS) == set(get_args(OptimizerName))


@pytest.mark.parametrize(
    ("name", "bytes_per_number"),
    [
        ("adamw_torch_fused", 4),
        ("adamw_torch", 4),
        ("adamw_8bit", 2 * (1 + 4 / 256)),
        ("lion_8bit", 1 + 4 / 256),
        ("sgd", 0),
    ],
)
def test_states_of_a_16_bit_matrix_take_their_bytes(
    name: OptimizerName, bytes_per_number: float
) -> None:
    states = sum(OPTIMIZERS[name].states((4096, 4096), 2))
    assert states / 4096**2 == pytest.approx(bytes_per_number, abs=1e-6)


def test_a_tensor_below_4096_numbers_keeps_32_bit_states() -> None:
    assert sum(OPTIMIZERS["adamw_8bit"].states((4095,), 2)) == 2 * 4 * 4095


def test_paged_states_are_not_in_device_memory() -> None:
    paged = OPTIMIZERS["paged_adamw_32bit"]
    assert list(paged.states((1000, 1000), 2)) == []
    assert paged.paged_bytes((1000, 1000)) == 8_000_000
    assert paged.paged_bytes((99, 1000)) == 0


def test_a_projected_matrix_keeps_its_projection_and_two_moments_of_a_low_rank() -> None:
    states = list(OPTIMIZERS["galore_adamw"].states((4096, 1024), 2, is_matrix_of_layer=True))
    assert states == [2 * 128 * 1024, 2 * 128 * 4096, 2 * 128 * 4096]
    assert sum(OPTIMIZERS["galore_adamw"].states((32000, 1024), 2)) == 2 * 2 * 32000 * 1024


def test_4_bit_states_take_half_a_byte_and_a_scale_per_128_numbers() -> None:
    states = sum(OPTIMIZERS["adamw_torch_4bit"].states((4096, 4096), 2))
    assert states / 4096**2 == pytest.approx(2 * (0.5 + 4 / 128), abs=1e-4)


def test_adafactor_keeps_a_number_per_row_and_per_column() -> None:
    assert sum(OPTIMIZERS["adafactor"].states((1000, 200), 2)) == 4 * 1200


# Heap and tape


def test_a_tensor_is_freed_by_its_last_holder() -> None:
    heap = Heap()
    tensor = heap.hold(heap.allocate(100, 4, "activations"))
    heap.drop(tensor)
    assert heap.live_bytes == 512
    heap.drop(tensor)
    assert heap.live_bytes == 0


def test_a_segment_remembers_what_was_alive_at_its_peak() -> None:
    heap = Heap()
    weights = heap.allocate(1024, 1, "weights")
    heap.enter("step")
    heap.scratch(2048)
    heap.drop(weights)
    heap.allocate(512, 1, "logits")
    assert heap.compositions()["step"] == {"weights": 1024, "temporary": 2048}


def test_a_saved_tensor_lives_until_its_backward() -> None:
    tape = Tape(Heap())
    x = tape.heap.allocate(256, 4, "activations", requires_grad=True)
    y = tape.run(x, saves=[x], consumes=True)
    assert tape.heap.live_bytes == 2048
    gradient = tape.backward(tape.take(), y, tape.heap.allocate(256, 4, "temporary"), x)
    tape.drop(y)
    assert gradient is not None
    assert tape.heap.live_bytes == gradient.num_bytes


def test_gradients_that_are_passed_on_take_no_memory() -> None:
    tape = Tape(Heap())
    x = tape.heap.allocate(256, 4, "activations", requires_grad=True)
    y = tape.run(x, gradient_bytes=[PASSED_ON])
    seed = tape.heap.allocate(256, 4, "temporary")
    assert tape.backward(tape.take(), y, seed, x) is seed


def test_both_gradients_of_a_tied_weight_are_there_before_they_are_added() -> None:
    tape = Tape(Heap())
    whole = WeightGradient("embedding", 1024)
    tape.accumulate(whole)
    tape.accumulate(replace(whole, is_partial=True))
    assert tape.heap.live_bytes == 2048
    tape.accumulate(whole)
    assert tape.heap.peaks[""].num_bytes == 3072
    assert tape.heap.live_bytes == 1024


def test_nothing_is_saved_while_the_tape_does_not_record() -> None:
    tape = Tape(Heap())
    tape.is_recording = False
    x = tape.heap.allocate(256, 4, "activations", requires_grad=True)
    y = tape.run(x, saves=[x], consumes=True)
    assert tape.heap.live_bytes == y.num_bytes
    assert not y.requires_grad


# Allocator


def test_native_segments_are_2_mib_20_mib_or_of_the_size_asked_for() -> None:
    allocator = Allocator(expandable_segments=False)
    reserved = []
    for key, num_bytes in enumerate((512, 5 * MIB, 16 * MIB)):
        allocator.allocate(key, num_bytes)
        reserved.append(allocator.reserved_bytes)
    assert reserved == [2 * MIB, 22 * MIB, 38 * MIB]


def test_a_freed_block_is_used_again() -> None:
    allocator = Allocator(expandable_segments=False)
    allocator.replay([0, ~0, 1, ~1, 2], [12 * MIB, 8 * MIB, 3 * MIB])
    assert allocator.peak_reserved_bytes == 12 * MIB


def test_a_native_block_keeps_a_rest_of_up_to_a_mebibyte() -> None:
    sizes = {expandable: Allocator(expandable) for expandable in (False, True)}
    for allocator in sizes.values():
        allocator.replay([0], [11 * MIB + 512])
    assert sizes[False].allocated_bytes == 12 * MIB
    assert sizes[True].allocated_bytes == 11 * MIB + 512


def test_free_neighbours_become_one_block() -> None:
    allocator = Allocator(expandable_segments=True)
    allocator.replay([0, 1, 2, ~0, ~2, ~1, 3], [10 * MIB, 10 * MIB, 10 * MIB, 30 * MIB])
    assert allocator.peak_reserved_bytes == 2 * LARGE_SEGMENT_BYTES


def test_an_expandable_segment_grows_where_a_native_one_is_left_behind() -> None:
    native, expandable = Allocator(False), Allocator(True)
    for allocator in (native, expandable):
        allocator.replay([0, ~0, 1], [40 * MIB, 60 * MIB])
    assert (native.reserved_bytes, expandable.reserved_bytes) == (100 * MIB, 60 * MIB)


def test_an_emptied_cache_keeps_only_what_is_in_use() -> None:
    allocator = Allocator(expandable_segments=False)
    allocator.replay([0, 1, ~0], [40 * MIB, 60 * MIB])
    allocator.empty_cache()
    assert allocator.reserved_bytes == 60 * MIB


# Depth


def simulated_peaks(shape: ModelShape, **fields: object) -> dict[str, int]:
    """Allocated peaks with every layer of the model played."""
    program = program_of(JobSpec.parse(fields), shape, GPU)
    peaks = Simulation(program, program.layer_kinds()).play().heap.peaks
    return {
        phase: max(p.num_bytes for name, p in peaks.items() if name.split("/")[0] == phase)
        for phase in SFT_PHASES
    }


WITHIN_BUDGET = {
    "gradient_checkpointing": False,
    "torch_compile": True,
    "activation_memory_budget": 0.5,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kept",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": False},
        {"activation_offloading": True, "max_length": 4096},
        {"lora_r": 64},
        {**WITHIN_BUDGET, "activation_memory_budget": 1},
        WITHIN_BUDGET,
    ],
    ids=str,
)
def test_a_deep_model_extends_a_shallow_one_exactly(
    method: str, kept: Mapping[str, object]
) -> None:
    fields: dict[str, Any] = {"method": method, "max_length": 1024, **kept}
    peaks = find_peaks(program_of(JobSpec.parse(fields), LLAMA, GPU))
    assert {phase: part.total() for phase, part in peaks.by_phase.items()} == simulated_peaks(
        LLAMA, **fields
    )


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_a_budget_leads_from_checkpointing_to_keeping_all_that_takes_products(method: str) -> None:
    def forward(**fields: object) -> int:
        return predict(method=method, **{**WITHIN_BUDGET, **fields}).phases["forward"]

    budgets = (0, 0.1, 0.3, 0.5)
    kept = [forward(activation_memory_budget=budget) for budget in budgets]
    assert kept[0] == forward(gradient_checkpointing=True)
    steps = [
        (after - before) / (high - low)
        for (before, after), (low, high) in zip(pairwise(kept), pairwise(budgets), strict=True)
    ]
    all_kept, products_kept = (
        forward(activation_memory_budget=1),
        forward(activation_memory_budget=0.9),
    )
    assert steps == pytest.approx([all_kept - kept[0]] * len(steps), rel=0.1)
    assert kept[-1] < products_kept == forward(activation_memory_budget=0.8) < all_kept


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_compiled_layers_keep_less(method: str) -> None:
    compiled, plain = (
        predict(method=method, gradient_checkpointing=False, torch_compile=is_compiled).phases
        for is_compiled in (True, False)
    )
    assert compiled["backward"] < 0.9 * plain["backward"] and compiled["load"] == plain["load"]


def test_capped_scores_are_stored_by_eager_and_not_by_flex_attention() -> None:
    gemma = models()["google/gemma-2-9b"].shape
    flex, eager = (
        estimate(
            JobSpec.parse({"method": "qlora", "max_length": 8192, "attn_implementation": kernel}),
            gemma,
            GPU,
        )
        for kernel in ("flex_attention", "eager")
    )
    assert 3 * flex.phases["backward"] < eager.phases["backward"]


@pytest.mark.parametrize(
    "other", [{"torch_compile": False}, {"gradient_checkpointing": True}], ids=str
)
def test_a_budget_means_nothing_to_layers_that_are_not_compiled_or_keep_nothing(
    other: dict[str, object],
) -> None:
    fields = {**WITHIN_BUDGET, **other}
    assert (
        predict(**fields).components
        == predict(**{**fields, "activation_memory_budget": 1}).components
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_that_mixes_layers_is_extended_to_a_percent(batch: int) -> None:
    fields: dict[str, Any] = {"method": "lora", "per_device_train_batch_size": batch}
    exact = max(simulated_peaks(gemma3(), **fields).values())
    extended = max(
        part.total()
        for part in find_peaks(program_of(JobSpec.parse(fields), gemma3(), GPU)).by_phase.values()
    )
    assert exact <= extended <= 1.01 * exact


# The estimate


@pytest.mark.parametrize("gpu", [GPU, card((7, 5)), CPU], ids=["h100", "t4", "cpu"])
@pytest.mark.parametrize(("method", "optim"), SUITED)
def test_the_components_add_up_to_the_total(method: str, optim: str, gpu: Gpu) -> None:
    found = predict(gpu=gpu, method=method, optim=optim)
    assert sum(part.bytes for part in found.components) == found.total_bytes
    assert {part.name for part in found.components} <= CONTRACT_NAMES
    assert all(part.bytes > 0 and part.note for part in found.components)
    assert found.low_bytes <= found.total_bytes <= found.high_bytes


@pytest.mark.parametrize("name", models())
def test_every_preset_model_has_an_estimate(name: str) -> None:
    model = models()[name]
    found = predict(model.shape, gpus()["t4"], method="qlora")
    assert found.num_parameters == model.shape.num_parameters
    assert set(found.phases) == SFT_PHASES


def test_the_json_holds_what_the_contract_names() -> None:
    found = predict().to_json()
    assert set(found) >= {
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


def test_published_arithmetic_of_an_8b_model_holds() -> None:
    shape = llama(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, tie_word_embeddings=False
    )
    found = predict(shape, method="full", gradient_accumulation_steps=1)
    assert sizes_of(found)["weights"] == pytest.approx(8_030_261_248 * 2, rel=1e-5)
    assert found.peak_allocated_bytes / GIB == pytest.approx(59.9, abs=0.1)
    assert predict(shape, method="lora").num_trainable_parameters == 41_943_040


def test_a_tied_head_counts_once() -> None:
    tied, untied = predict(), predict(llama(tie_word_embeddings=False))
    assert untied.num_parameters - tied.num_parameters == 128256 * 2048


def test_accumulated_gradients_live_through_the_next_forward() -> None:
    once, twice = (predict(method="full", gradient_accumulation_steps=steps) for steps in (1, 2))
    assert twice.phases["forward"] >= once.phases["forward"] + 2 * once.num_parameters


def test_checkpointing_saves_most_activations() -> None:
    kept, recomputed = (
        sizes_of(predict(gradient_checkpointing=flag))["activations"] for flag in (False, True)
    )
    assert recomputed < 0.2 * kept


def test_a_card_without_bfloat16_trains_full_weights_in_float32() -> None:
    turing, ampere = (
        sizes_of(predict(gpu=card(version), method="full")) for version in ((7, 5), (8, 0))
    )
    assert turing["weights"] == 2 * ampere["weights"]


def test_paged_states_count_in_the_process_and_not_in_the_allocator() -> None:
    paged, plain = (
        predict(method="full", optim=name) for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    assert paged.peak_allocated_bytes < plain.peak_allocated_bytes - plain.num_parameters
    assert paged.total_bytes == pytest.approx(plain.total_bytes, rel=0.01)


def test_a_cpu_has_neither_context_nor_gaps() -> None:
    found = predict(gpu=CPU)
    assert {"cuda_context", "fragmentation"}.isdisjoint(sizes_of(found))
    assert found.total_bytes == found.peak_allocated_bytes
    assert sizes_of(found)["weights"] >= 4 * found.num_parameters


def test_rows_known_to_be_short_take_less_than_max_length() -> None:
    job = JobSpec.parse({"max_length": 4096})
    short = estimate(job, LLAMA, GPU, longest_row_tokens=512)
    assert short.peak_allocated_bytes == predict(max_length=512).peak_allocated_bytes


def test_eager_attention_in_bfloat16_takes_a_float32_copy_of_the_scores() -> None:
    program = program_of(JobSpec.parse({"attn_implementation": "eager"}), LLAMA, GPU)
    wide, narrow = (
        find_peaks(replace(program, is_float16=flag)).by_phase["eval"].total()
        for flag in (False, True)
    )
    assert (
        wide - narrow == 2 * program.rows * 32 * program.row_tokens**2
    )  # a 16-bit copy of the weights comes after


def test_the_context_of_a_t4_is_the_measured_one() -> None:
    assert context_of(card((7, 5))).expected_bytes == 141 * MIB


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.99, "does_not_fit"), (1.03, "tight"), (1.1, "fits")]
)
def test_the_verdict_compares_with_the_capacity(share: float, verdict: str) -> None:
    needed = predict().total_bytes
    assert predict(gpu=card(capacity_bytes=int(needed * share))).verdict == verdict


def test_nothing_is_paged_without_a_gpu() -> None:
    paged, plain = (
        predict(method="full", optim=name, gpu=CPU) for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    assert paged == plain and paged.pageable_bytes == 0


def test_what_goes_on_because_paged_states_make_room_is_tight() -> None:
    found = predict(method="full", optim="paged_adamw_8bit")
    assert found.pageable_bytes > found.num_parameters
    least = found.total_bytes - found.pageable_bytes
    verdicts = [
        predict(method="full", optim=found_on, gpu=card(capacity_bytes=least + 1)).verdict
        for found_on in ("paged_adamw_8bit", "adamw_8bit")
    ]
    assert verdicts == ["tight", "does_not_fit"]
    assert (
        predict(method="full", optim="paged_adamw_8bit", gpu=card(capacity_bytes=least - 1)).verdict
        == "does_not_fit"
    )


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("batch", "length"), [(1, 512), (2, 2048), (3, 1000), (8, 1024)])
def test_fragmentation_is_close_to_a_replay_of_the_allocator(
    method: str, checkpointing: bool, batch: int, length: int
) -> None:
    fields: dict[str, Any] = {"method": method, "gradient_checkpointing": checkpointing}
    fields |= {"per_device_train_batch_size": batch, "max_length": length}
    program = program_of(JobSpec.parse(fields), LLAMA, GPU)
    simulation = Simulation(program, program.layer_kinds())
    simulation.load()
    simulation.step()
    simulation.step()
    allocator = Allocator(expandable_segments=True)
    allocator.replay(simulation.heap.log, simulation.heap.sizes)
    assert predict(**fields).peak_reserved_bytes == pytest.approx(
        allocator.peak_reserved_bytes, rel=0.06
    )


# Refusals


def test_a_length_beyond_the_positions_is_refused() -> None:
    with pytest.raises(
        SpecError, match="max_length: 4096 is beyond the model's 2048 positions; give 2048 or less"
    ):
        predict(llama(max_position_embeddings=2048), max_length=4096)


def test_an_unknown_target_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        SpecError, match=r"no linear layer c_attn; choose from .*q_proj.*, or all-linear"
    ):
        predict(target_modules="c_attn,q_proj")


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        predict(llama(max_position_embeddings=64), target_modules="c_attn")
    assert [problem.field for problem in refused.value.problems] == ["max_length", "target_modules"]


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
suited = st.sampled_from(SUITED)
cards = st.sampled_from([GPU, card((8, 6)), card((7, 5)), CPU])
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BYTES = ("peak_allocated_bytes", "peak_reserved_bytes", "total_bytes", "low_bytes", "high_bytes")


def assert_no_lower(more: MemoryEstimate, less: MemoryEstimate) -> None:
    for name in BYTES:
        assert getattr(more, name) >= getattr(less, name), name


@settings(max_examples=25, deadline=None)
@given(
    suit=suited,
    fields=jobs,
    gpu=cards,
    field=st.sampled_from(["per_device_train_batch_size", "max_length", "lora_r"]),
)
def test_a_larger_batch_length_or_rank_never_lowers_the_estimate(
    suit: tuple[str, str], fields: dict[str, Any], gpu: Gpu, field: str
) -> None:
    shape = llama(**SMALL)
    fields |= dict(zip(("method", "optim"), suit, strict=True))
    more = predict(shape, gpu, **fields | {field: fields[field] + 1})
    assert_no_lower(more, predict(shape, gpu, **fields))


@settings(max_examples=25, deadline=None)
@given(
    suit=suited,
    fields=jobs,
    gpu=cards,
    field=st.sampled_from(["num_hidden_layers", "intermediate_size", "vocab_size"]),
    value=st.integers(1, 40),
)
def test_more_parameters_never_lower_the_estimate(
    suit: tuple[str, str], fields: dict[str, Any], gpu: Gpu, field: str, value: int
) -> None:
    fields |= dict(zip(("method", "optim"), suit, strict=True))
    less, more = (llama(**SMALL | {field: size}) for size in (value, value + 1))
    assert_no_lower(predict(more, gpu, **fields), predict(less, gpu, **fields))


@pytest.mark.parametrize("num_layers", [7, 8, 13, 14, 25])
def test_one_more_layer_of_a_mixed_model_never_lowers_the_estimate(num_layers: int) -> None:
    assert_no_lower(predict(gemma3(num_layers + 1)), predict(gemma3(num_layers)))


def test_an_estimate_is_the_same_every_time() -> None:
    job = JobSpec.parse({"method": "qlora"})
    assert estimate(job, LLAMA, GPU) is estimate(job, LLAMA, replace(GPU))
