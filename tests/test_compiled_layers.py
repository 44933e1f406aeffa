"""What a budget keeps and computes again: counted in the graphs of torch.compile, on a small layer, and estimated."""

from typing import Any

import pytest

from core.job import JobSpec
from core.memory import estimate
from core.presets import gpus
from core.shapes import ModelShape

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": 32000,
}
NUM_TOKENS = 64


def estimated_bytes(method: str, budget: float) -> float:
    """What a layer keeps: its input, and what one more layer adds to the forward pass beyond what it adds with a budget
    of 0."""

    def of_a_layer(budget: float) -> int:
        within = {"torch_compile": True, "gradient_checkpointing": False, "activation_memory_budget": budget}
        job = JobSpec.parse({"method": method, "per_device_train_batch_size": 1, "max_length": NUM_TOKENS, **within})
        shallow, deep = (
            ModelShape.from_config(
                {"model_type": "llama", "max_position_embeddings": 4096, "hidden_act": "silu", **SIZES}
                | {"num_hidden_layers": num_layers, "tie_word_embeddings": False}
            )
            for num_layers in (10, 11)
        )
        return (
            estimate(job, deep, gpus()["h200"]).phases["forward"]
            - estimate(job, shallow, gpus()["h200"]).phases["forward"]
        )

    return 2 * SIZES["hidden_size"] * NUM_TOKENS + of_a_layer(budget) - of_a_layer(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # from within PyTorch's compiler
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_budget_is_kept_to_and_paid_for_in_products(method: str) -> None:
    from transformers import LlamaConfig

    from benchmarks.activation_budget import measure

    config = LlamaConfig(**SIZES)
    config._attn_implementation = "sdpa"
    found = {budget: measure(config, method, budget, NUM_TOKENS) for budget in (1.0, 0.7, 0.3, 0.1)}
    kept, forward, backward = zip(*found.values(), strict=True)
    assert all(kept <= estimated_bytes(method, budget) for budget, (kept, *_) in found.items())
    assert list(kept) == sorted(kept, reverse=True) and kept[-1] < 0.3 * kept[0]
    assert set(forward) == {forward[0]}
    assert list(backward) == sorted(backward) and backward[0] < backward[-1] < backward[0] + forward[0]
