"""Programs: precision, quantization and optimizers."""

from typing import get_args

import pytest

from core.job import SpecError
from core.memory.program import OPTIMIZERS, Quantization
from core.training.contract.job import OptimizerName
from tests.builders.estimates import card, component_bytes, llama, predict

HIDDEN = 4096
MATRIX = (HIDDEN, HIDDEN)
NUMEL = HIDDEN**2
BF16 = 2


@pytest.mark.parametrize(
    ("stored", "bits"),
    [(Quantization(4), 4.5), (Quantization(4, True), 4.127), (Quantization(8), 8.0)],
)
def test_a_quantized_weight_takes_its_bits_and_scales(stored: Quantization, bits: float) -> None:
    num_bytes = sum(size for size, _ in stored.storage(8192, 8192))
    assert num_bytes * 8 / 8192**2 == pytest.approx(bits, abs=0.005)


def test_only_8_bit_layers_keep_their_inputs_from_checkpointing() -> None:
    eight, four = predict(method="lora-8bit"), predict(method="qlora")
    assert eight.phases["backward"] > 1.5 * four.phases["backward"]


def test_a_card_without_bfloat16_trains_full_weights_in_float32() -> None:
    turing, ampere = (predict(gpu=card(version), method="full") for version in ((7, 5), (8, 0)))
    assert component_bytes(turing)["weights"] == 2 * component_bytes(ampere)["weights"]


# Optimizers


def state_bytes(name: OptimizerName, shape: tuple[int, ...], is_layer_matrix: bool = False) -> int:
    return sum(OPTIMIZERS[name].state_bytes(shape, BF16, is_layer_matrix))


def test_every_optimizer_of_the_job_has_a_record() -> None:
    assert set(OPTIMIZERS) == set(get_args(OptimizerName))


@pytest.mark.parametrize(
    ("name", "bytes_per_element"),
    [
        ("adamw_torch_fused", 4),
        ("adamw_torch", 4),
        ("adamw_8bit", 2 * (1 + 4 / 256)),
        ("lion_8bit", 1 + 4 / 256),
        ("sgd", 0),
        ("adamw_torch_4bit", 2 * (0.5 + 4 / 128)),
    ],
)
def test_states_of_a_16_bit_matrix(name: OptimizerName, bytes_per_element: float) -> None:
    assert state_bytes(name, MATRIX) / NUMEL == pytest.approx(bytes_per_element, abs=1e-4)


def test_a_tensor_below_4096_elements_keeps_32_bit_states() -> None:
    assert state_bytes("adamw_8bit", (4095,)) == 2 * 4 * 4095


def test_paged_states_are_not_in_device_memory() -> None:
    assert state_bytes("paged_adamw_32bit", (1000, 1000)) == 0


def test_paged_states_are_in_managed_memory() -> None:
    assert OPTIMIZERS["paged_adamw_32bit"].paged_bytes((1000, 1000)) == 2 * 4 * 1000**2


def test_states_of_a_small_tensor_are_not_paged() -> None:
    assert OPTIMIZERS["paged_adamw_32bit"].paged_bytes((99, 1000)) == 0


def test_a_projected_matrix_keeps_its_projection_and_two_small_moments() -> None:
    states = OPTIMIZERS["galore_adamw"].state_bytes((4096, 1024), BF16, is_layer_matrix=True)
    assert list(states) == [2 * 128 * 1024, 2 * 128 * 4096, 2 * 128 * 4096]


def test_an_embedding_is_not_projected() -> None:
    assert state_bytes("galore_adamw", (32000, 1024)) == 2 * 2 * 32000 * 1024


def test_adafactor_keeps_a_number_per_row_and_per_column() -> None:
    assert state_bytes("adafactor", (1000, 200)) == 4 * 1200


# Refusals


def test_a_length_beyond_the_positions_is_refused() -> None:
    problem = "max_length: 4096 is beyond the model's 2048 positions; give 2048 or less"
    with pytest.raises(SpecError, match=problem):
        predict(llama(max_position_embeddings=2048), max_length=4096)


def test_an_unknown_target_is_refused_with_the_names_there_are() -> None:
    problem = r"no linear layer c_attn; choose from .*q_proj.*, or all-linear"
    with pytest.raises(SpecError, match=problem):
        predict(target_modules="c_attn,q_proj")


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        predict(llama(max_position_embeddings=64), target_modules="c_attn")
    assert [problem.field for problem in refused.value.problems] == ["max_length", "target_modules"]
