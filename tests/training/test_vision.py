"""Models that also read pictures: the text decoder trains, the tower is counted and stays."""

from pathlib import Path
from typing import Any

import pytest

from core.job import ModelNotFound
from core.memory import MemoryEstimate
from core.models import ModelShape, find_model
from core.resolve import resolve
from core.training.contract.job import Job
from core.training.data.tokenizer import load_tokenizer
from core.training.model.load import load_model
from tests.builders.training_runs import (
    FINISHED,
    TINY_CONFIG,
    copy_model,
    make_run,
    tiny_model,
    train,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
BLOCK_BYTES = 512
"""PyTorch gives out memory in whole blocks."""
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
TEXT = {**TINY_CONFIG, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "patch_size": 14}
TOWER |= {"num_attention_heads": 4, "image_size": 28}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
QWEN_TOWER = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4}
REFUSED: dict[str, dict[str, Any]] = {
    "llava": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": TOWER},
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {**QWEN_TOWER, "out_hidden_size": 32},
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {**QWEN_TOWER, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    },
    "mllama": {"text_config": {**TEXT, "cross_attention_layers": [1]}, "vision_config": TOWER},
    "mistral3": {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": TOWER},
    "llama4": {"text_config": TEXT, "vision_config": TOWER},
}


def gemma(folder: Path, has_head: bool = False) -> Path:
    """Make a tiny Gemma 3 with a vision tower and random weights."""
    from transformers import Gemma3Config

    text = {**TEXT, "sliding_window": 64}
    vision = {**TOWER, "vision_use_head": has_head, "model_type": "siglip_vision_model"}
    return tiny_model(folder, Gemma3Config(text_config=text, vision_config=vision))


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma(tmp_path_factory.mktemp("gemma") / "model")


def estimate_of(folder: Path, method: str) -> MemoryEstimate:
    return resolve({"model": str(folder), "method": method, "max_length": 64}).estimate()


def loaded(folder: Path, method: str, **settings: Any) -> Any:
    job = Job(model=str(folder), dataset="data/train.jsonl", method=method, **settings)
    return load_model(job, load_tokenizer(str(folder), "main", is_conversational=False))


def is_in_tower(name: str) -> bool:
    return "vision_tower" in name or "multi_modal_projector" in name


def test_gemma_3_4b_has_the_published_number_of_parameters() -> None:
    shape = ModelShape.from_config(GEMMA_3_4B)
    assert shape.tower
    assert shape.num_parameters + shape.tower.num_parameters == 4_300_079_472


@pytest.mark.parametrize("has_head", [False, True])
def test_the_tower_is_counted_tensor_by_tensor(tmp_path: Path, has_head: bool) -> None:
    folder = gemma(tmp_path / "model", has_head)
    tower = find_model(str(folder)).shape.tower  # type: ignore[union-attr]
    assert tower
    real = {
        name: tuple(parameter.shape)
        for name, parameter in loaded(folder, "full").model.named_parameters()
        if is_in_tower(name)
    }
    assert {each.name: each.shape for each in tower.parameters} == real


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_weights_of_the_estimate_are_those_that_are_loaded(
    gemma_folder: Path, method: str
) -> None:
    model = loaded(gemma_folder, method).model
    tensors = {id(each): each for each in model.parameters()}.values()
    blocks = sum(-(-each.numel() * each.element_size() // BLOCK_BYTES) for each in tensors)
    sizes = {part.name: part.bytes for part in estimate_of(gemma_folder, method).components}
    assert sizes["weights"] == blocks * BLOCK_BYTES


def test_full_training_leaves_the_tower_out(gemma_folder: Path) -> None:
    model = loaded(gemma_folder, "full").model
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trained
    assert not any(map(is_in_tower, trained))
    counted = estimate_of(gemma_folder, "full").num_trainable_parameters
    assert counted == sum(each.numel() for each in model.parameters() if each.requires_grad)


@pytest.mark.parametrize("target_modules", ["all-linear", "q_proj,fc1"])
def test_an_adapter_leaves_the_tower_out(gemma_folder: Path, target_modules: str) -> None:
    adapter = loaded(gemma_folder, "lora", target_modules=target_modules).adapter
    assert adapter
    assert adapter.target_modules
    assert not any(map(is_in_tower, adapter.target_modules))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_gemma_3_trains_and_keeps_its_tower(
    tmp_path: Path, gemma_folder: Path, method: str
) -> None:
    from safetensors.torch import load_file

    run = make_run(tmp_path / "run", model=str(gemma_folder), method=method, max_steps=2)
    assert train(run) == FINISHED
    if method != "full":
        written = load_file(run / "output" / "adapter_model.safetensors")
        assert not any(map(is_in_tower, written))
        return
    before = load_file(gemma_folder / "model.safetensors")
    after = load_file(run / "output" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before if is_in_tower(name))


@pytest.mark.parametrize("model_type", REFUSED)
def test_other_models_with_vision_are_refused_from_their_files(
    tmp_path: Path, model_type: str
) -> None:
    from transformers import AutoConfig

    copy_model(tmp_path / "model")
    AutoConfig.for_model(model_type, **REFUSED[model_type]).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelNotFound, match="is a model with vision"):
        find_model(str(tmp_path / "model"))
