"""The program that counts what a budget keeps and computes again, on a small layer."""

import pytest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # from within PyTorch's compiler
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_budget_is_kept_to_and_paid_for_in_products(method: str) -> None:
    from transformers import LlamaConfig

    from benchmarks.activation_budget import measure

    config = LlamaConfig(hidden_size=512, intermediate_size=1792, num_attention_heads=4, num_key_value_heads=1)
    config._attn_implementation = "sdpa"
    whole, most, some = (measure(config, method, budget, 64) for budget in (1.0, 0.7, 0.3))
    assert whole[0] > most[0] > some[0] and most[0] <= 0.7 * whole[0] and some[0] <= 0.4 * whole[0]
    assert whole[1] == most[1] == some[1]
    assert whole[2] <= most[2] < some[2] < whole[2] + whole[1]
