"""Families of models: a tiny random one of each trains, and its result loads whole.

Each has the shape of a published model: its flags and its proportions, and small numbers.
"""

from math import gcd
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from core.models import models
from core.resolve import resolve
from core.training.model.weights import BaseRequest, load_base
from tests.builders.training_runs import FINISHED, load_result, make_run, tiny_model, train

pytestmark = [
    pytest.mark.training,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
PUBLISHED = (
    "meta-llama/Llama-3.2-1B",
    "mistralai/Mistral-7B-v0.1",
    "mistralai/Mixtral-8x7B-v0.1",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-30B-A3B",
    "google/gemma-2b",
    "google/gemma-2-2b",
    "google/gemma-3-1b-pt",
    "microsoft/Phi-3-mini-4k-instruct",
    "HuggingFaceTB/SmolLM3-3B",
    "allenai/OLMo-2-1124-7B",
    "ibm-granite/granite-3.3-2b-instruct",
    "openai/gpt-oss-20b",
)
HEAD_DIM = 16
SMALL: dict[str, int | None] = {
    "vocab_size": 2048,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "sliding_window": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}


def small_config(model: str) -> Any:
    """Return the configuration of a published model with small numbers in its proportions."""
    published: dict[str, Any] = dict(models()[model].config)
    small = {name: SMALL.get(name, value) for name, value in published.items()}
    num_heads = int(published["num_attention_heads"])
    num_key_value_heads = int(published.get("num_key_value_heads", num_heads))
    shared = gcd(num_heads, num_key_value_heads)
    if num_key_value_heads > 1:
        shared //= 2  # so that several stay several
    small["num_attention_heads"] = num_heads // max(shared, 1)
    small["num_key_value_heads"] = num_key_value_heads // max(shared, 1)
    small["hidden_size"] = HEAD_DIM * small["num_attention_heads"]
    small["head_dim"] = HEAD_DIM
    if "layer_types" in small:
        small["layer_types"] = list(small["layer_types"])[: SMALL["num_hidden_layers"]]
    return AutoConfig.for_model(small.pop("model_type"), **small, **TOKENS)


def assert_whole(folder: Path) -> None:
    """Assert that a folder is sound, and that all its tensors are loaded as they were written."""
    resolve({"model": str(folder), "max_length": 128}).require_trainable()
    model, absent = load_base(BaseRequest(str(folder), "main", torch.float32))
    assert not absent
    written = load_result(folder.parent, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(written[name]), name


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("published", PUBLISHED)
def test_a_family_trains_and_its_result_loads_whole(
    tmp_path: Path, published: str, method: str
) -> None:
    torch.manual_seed(0)
    folder = tiny_model(tmp_path / "model", small_config(published))
    resolve({"model": str(folder), "method": method, "max_length": 128}).require_trainable()
    run = make_run(tmp_path / "run", model=str(folder), method=method, max_steps=2)
    assert train(run) == FINISHED
    if method == "full":
        assert_whole(run / "output")
    else:
        again = make_run(
            tmp_path / "again", model=str(folder), adapter=str(run), method=method, max_steps=1
        )
        assert train(again) == FINISHED


def test_every_family_of_the_menu_is_tried() -> None:
    tried = {models()[name].shape.model_type for name in PUBLISHED}
    assert tried == {model.shape.model_type for model in models().values()}
