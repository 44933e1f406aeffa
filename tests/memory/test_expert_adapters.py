"""Adapters on experts in the estimate: what names mean, what is refused, what they cost."""

from typing import Any

import pytest

from core.job import JobSpec, SpecError
from core.memory import estimate
from core.models import ModelShape
from core.models.shapes import FAMILIES
from tests.builders.estimates import GPU

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def estimate_of(target_modules: str, **fields: Any) -> Any:
    asked = {"model": "m", "dataset": "demo", "max_length": 64, "target_modules": target_modules}
    return estimate(JobSpec.parse(asked | fields), ModelShape.from_config(MIXTRAL), GPU)


def problem_of(target_modules: str, **fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        estimate_of(target_modules, **fields)
    return str(caught.value)


def test_experts_in_one_tensor_share_it_with_both_ranks() -> None:
    both = estimate_of("w1,w3", lora_r=4).num_trainable_parameters
    own = estimate_of("gate_up_proj", lora_r=8).num_trainable_parameters
    assert both == own


def test_half_of_a_tensor_cannot_be_named() -> None:
    assert "w1 and w3 of an expert are in one tensor" in problem_of("q_proj,w1,w2")


def test_names_of_another_family_are_no_experts() -> None:
    assert "no linear layer gate_proj" in problem_of("gate_proj,w2")


@pytest.mark.parametrize(
    "fields", [{"lora_dropout": 0.1}, {"use_dora": True}, {"init_lora_weights": "olora"}]
)
def test_what_peft_cannot_do_with_experts_is_refused(fields: dict[str, Any]) -> None:
    assert "an adapter on experts, as target_modules asks for" in problem_of("w2", **fields)


def test_layers_may_have_what_experts_may_not() -> None:
    assert estimate_of("q_proj", lora_dropout=0.1).num_trainable_parameters


def test_all_linear_counts_no_experts() -> None:
    attention = "q_proj,k_proj,v_proj,o_proj"
    counted = estimate_of("all-linear").num_trainable_parameters
    assert counted == estimate_of(attention).num_trainable_parameters


def test_a_changed_copy_of_the_experts_is_counted() -> None:
    copies = 4 * 4 * 3 * 256 * 512 * 2
    fields = {"lora_r": 1, "gradient_checkpointing": False}
    more = estimate_of("q_proj,w1,w2,w3", **fields).peak_allocated_bytes
    assert more - estimate_of("q_proj", **fields).peak_allocated_bytes > copies


def test_names_are_those_that_peft_takes_for_parameters() -> None:
    pytest.importorskip("peft")
    from peft.utils.transformers_weight_conversion import _MOE_TARGET_MODULE_MAPPING as known

    for family, name in (("mixtral", "mixtral"), ("qwen3_moe", "qwen2_moe")):
        layout = FAMILIES[family].experts
        assert layout is not None
        assert dict(layout.older_names) | {"gate": "gate.weight"} == known[name]
