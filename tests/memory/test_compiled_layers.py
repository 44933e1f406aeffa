"""Memory of a compiled layer: as torch.compile makes it on a processor, and as estimated."""

from collections.abc import Mapping

import pytest

from benchmarks.estimated_layer import Layer, config_of, estimated_layer

WIDTH, NUM_TOKENS = 2048, 1024
MEASURED: Mapping[tuple[str, str, float], tuple[int, int]] = {
    ("llama", "full", 1.0): (65608, 129032),
    ("llama", "full", 0.9): (43080, 131148),
    ("llama", "full", 0.5): (32768, 135240),
    ("llama", "full", 0.3): (19456, 134224),
    ("llama", "full", 0.1): (6144, 130128),
    ("llama", "lora", 1.0): (67112, 129032),
    ("llama", "lora", 0.9): (43304, 147880),
    ("llama", "lora", 0.5): (30944, 164640),
    ("llama", "lora", 0.3): (18656, 189384),
    ("llama", "lora", 0.1): (6368, 185252),
    ("llama", "qlora", 1.0): (65832, 127528),
    ("llama", "qlora", 0.9): (43304, 147816),
    ("llama", "qlora", 0.5): (32896, 188776),
    ("llama", "qlora", 0.3): (19680, 188776),
    ("llama", "qlora", 0.1): (6368, 184676),
    ("qwen2", "full", 1.0): (65608, 129038),
    ("qwen2", "full", 0.9): (43080, 131148),
    ("qwen2", "full", 0.3): (19456, 134224),
    ("qwen2", "lora", 1.0): (67112, 129032),
    ("qwen2", "lora", 0.9): (43304, 147880),
    ("qwen2", "lora", 0.3): (18656, 189384),
    ("qwen2", "qlora", 1.0): (65832, 127528),
    ("qwen2", "qlora", 0.9): (43304, 147816),
    ("qwen2", "qlora", 0.3): (19680, 188776),
    ("qwen3", "full", 1.0): (70808, 129032),
    ("qwen3", "full", 0.9): (48280, 140388),
    ("qwen3", "full", 0.3): (20480, 140448),
    ("qwen3", "lora", 1.0): (72312, 134232),
    ("qwen3", "lora", 0.9): (48504, 153080),
    ("qwen3", "lora", 0.3): (20704, 195652),
    ("qwen3", "qlora", 1.0): (71032, 132728),
    ("qwen3", "qlora", 0.9): (48504, 153016),
    ("qwen3", "qlora", 0.3): (20704, 194996),
    ("gemma3_text", "full", 1.0): (74912, 129040),
    ("gemma3_text", "full", 0.9): (52384, 129040),
    ("gemma3_text", "full", 0.3): (20480, 144544),
    ("gemma3_text", "lora", 1.0): (76416, 134236),
    ("gemma3_text", "lora", 0.9): (52608, 153084),
    ("gemma3_text", "lora", 0.3): (20704, 206908),
    ("gemma3_text", "qlora", 1.0): (75136, 132732),
    ("gemma3_text", "qlora", 0.9): (52608, 153020),
    ("gemma3_text", "qlora", 0.3): (22528, 207484),
    ("phi3", "full", 1.0): (70728, 141384),
    ("phi3", "full", 0.9): (48200, 141384),
    ("phi3", "full", 0.3): (15360, 133124),
    ("phi3", "lora", 1.0): (71944, 143080),
    ("phi3", "lora", 0.9): (48328, 119112),
    ("phi3", "lora", 0.3): (15552, 152324),
    ("phi3", "qlora", 1.0): (70856, 141768),
    ("phi3", "qlora", 0.9): (48328, 119048),
    ("phi3", "qlora", 0.3): (15552, 151748),
    ("olmo2", "full", 1.0): (70736, 145437),
    ("olmo2", "full", 0.9): (52304, 141341),
    ("olmo2", "full", 0.3): (20480, 141341),
    ("olmo2", "lora", 1.0): (72240, 134156),
    ("olmo2", "lora", 0.9): (52528, 153004),
    ("olmo2", "lora", 0.3): (20704, 195580),
    ("olmo2", "qlora", 1.0): (70960, 132652),
    ("olmo2", "qlora", 0.9): (52528, 152940),
    ("olmo2", "qlora", 0.3): (20704, 194924),
    ("granite", "full", 1.0): (65608, 129032),
    ("granite", "full", 0.9): (43080, 134164),
    ("granite", "full", 0.3): (19456, 138320),
    ("granite", "lora", 1.0): (67112, 129032),
    ("granite", "lora", 0.9): (43304, 147880),
    ("granite", "lora", 0.3): (18656, 189384),
    ("granite", "qlora", 1.0): (65832, 127528),
    ("granite", "qlora", 0.9): (43304, 147816),
    ("granite", "qlora", 0.3): (19680, 188776),
}
"""(family, method, activation memory budget) -> bytes per token that a layer saves, and that its
backward pass has alive at most, by the code that torch 2.13 writes (a slow test reads it again)."""
MIN_POINTWISE_BUDGET = 0.9
"""From this budget on, a layer recomputes no matmul."""
POINTWISE = [case for case in MEASURED if case[2] >= MIN_POINTWISE_BUDGET]
MATMULS = [case for case in MEASURED if case[2] < MIN_POINTWISE_BUDGET]
COMPILER_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
Case = tuple[str, str, float]


def per_token(layer: Layer) -> tuple[float, float]:
    return layer.kept_bytes / NUM_TOKENS, layer.peak_bytes / NUM_TOKENS


def estimated_per_token(case: Case) -> tuple[float, float]:
    family, method, budget = case
    return per_token(estimated_layer(config_of(family, WIDTH), method, budget, NUM_TOKENS))


@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_what_a_compiled_layer_saves_is_known_to_the_byte(case: Case) -> None:
    kept, _ = estimated_per_token(case)
    assert kept == MEASURED[case][0]


@pytest.mark.parametrize("case", MATMULS, ids=str)
def test_a_small_budget_is_nearly_used_up(case: Case) -> None:
    family, method, _ = case
    everything, measured = MEASURED[family, method, 1.0][0], MEASURED[case][0]
    kept, _ = estimated_per_token(case)
    assert measured <= kept <= measured + 0.09 * everything


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_the_peak_of_a_compiled_backward_pass_is_close(case: Case) -> None:
    measured = MEASURED[case][1]
    _, peak = estimated_per_token(case)
    assert 0.9 * measured < peak < 1.3 * measured


@pytest.mark.slow
@COMPILER_WARNINGS
@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_torch_compiles_the_layer_as_measured(case: Case) -> None:
    from benchmarks.compiled_layers import measure

    family, method, budget = case
    found = measure(config_of(family, WIDTH), method, budget, NUM_TOKENS)
    assert per_token(found) == pytest.approx(MEASURED[case], abs=1)


def measured_layers(method: str) -> tuple[Layer, Layer, Layer, Layer]:
    """Return a layer without a budget, and with ever smaller ones."""
    from benchmarks.compiled_layers import measure

    config = config_of("llama", 512)
    unlimited, large, half, small = (
        measure(config, method, budget, 256) for budget in (1.0, 0.9, 0.5, 0.1)
    )
    return unlimited, large, half, small


@pytest.mark.slow
@COMPILER_WARNINGS
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_budget_does_not_change_the_forward_pass(method: str) -> None:
    assert len({layer.forward_flops for layer in measured_layers(method)}) == 1


@pytest.mark.slow
@COMPILER_WARNINGS
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_small_budget_costs_matmuls(method: str) -> None:
    unlimited, large, half, small = measured_layers(method)
    most = unlimited.backward_flops + unlimited.forward_flops
    backward = [layer.backward_flops for layer in (unlimited, large, half, small)]
    assert backward[0] == backward[1] < backward[2] < backward[3] < most
