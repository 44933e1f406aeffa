"""Families of models: a tiny random one of each trains, and its result loads whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from core.training.model.weights import BaseRequest, load_base
from tests.builders.training_runs import FINISHED, make_run, tiny_model, train

pytestmark = [
    pytest.mark.training,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
TINY: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "mixtral": EXPERTS,
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 32},
    "gemma": {},
    "gemma2": {"sliding_window": 64},
    "gemma3_text": {"sliding_window": 64},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
    "granite": {},
    "gpt_oss": {**EXPERTS, "sliding_window": 64},
}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_and_its_result_loads_whole(
    tmp_path: Path, family: str, method: str
) -> None:
    from core.resolve import resolve

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY | FAMILIES[family])
    folder = tiny_model(tmp_path / "model", config)
    resolve({"model": str(folder), "method": method, "max_length": 128}).require_trainable()
    run = make_run(tmp_path / "run", model=str(folder), method=method, max_steps=2)
    assert train(run) == FINISHED
    if method == "full":
        resolve({"model": str(run / "output"), "max_length": 128}).require_trainable()
        _model, absent = load_base(BaseRequest(str(run / "output"), "main", torch.float32))
        assert not absent
    else:
        again = make_run(
            tmp_path / "again", model=str(folder), adapter=str(run), method=method, max_steps=1
        )
        assert train(again) == FINISHED
