"""What a compiled layer keeps and has at once: as torch.compile makes it on a processor, and as it is estimated."""

from collections.abc import Mapping

import pytest

from benchmarks.compiled_layers import Layer, config_of, estimated

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
"""(family, method, activation memory budget) -> bytes per token that a layer keeps, and that its backward pass has at
once: read in what torch 2.13 makes of it (the slow test reads it again)."""
LEAVES_PRODUCTS_ALONE = 0.9


def per_token(layer: Layer) -> tuple[float, float]:
    return layer.kept_bytes / NUM_TOKENS, layer.at_once_bytes / NUM_TOKENS


@pytest.mark.parametrize(("family", "method", "budget"), MEASURED, ids=str)
def test_a_compiled_layer_is_estimated_as_torch_makes_it(
    family: str, method: str, budget: float
) -> None:
    kept, at_once = MEASURED[family, method, budget]
    estimated_kept, estimated_at_once = per_token(
        estimated(config_of(family, WIDTH), method, budget, NUM_TOKENS)
    )
    if budget >= LEAVES_PRODUCTS_ALONE:
        assert estimated_kept == kept
    else:  # a budget is rarely met to the byte
        assert kept <= estimated_kept <= 0.09 * MEASURED[family, method, 1.0][0] + kept
    assert 0.9 * at_once < estimated_at_once < 1.3 * at_once


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # from within PyTorch's compiler
@pytest.mark.parametrize(("family", "method", "budget"), MEASURED, ids=str)
def test_torch_makes_it_so(family: str, method: str, budget: float) -> None:
    from benchmarks.inductor_layer import measure

    found = measure(config_of(family, WIDTH), method, budget, NUM_TOKENS)
    assert per_token(found) == pytest.approx(MEASURED[family, method, budget], abs=1)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # from within PyTorch's compiler
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_budget_is_paid_for_in_products_once_the_rest_is_gone(method: str) -> None:
    from benchmarks.inductor_layer import measure

    whole, *layers = (
        measure(config_of("llama", 512), method, budget, 256) for budget in (1.0, 0.9, 0.5, 0.1)
    )
    assert len({layer.forward_flops for layer in (whole, *layers)}) == 1
    backward = [layer.backward_flops for layer in (whole, *layers)]
    assert (
        backward[0] == backward[1] < backward[2] < backward[3] < backward[0] + whole.forward_flops
    )
