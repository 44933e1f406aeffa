"""Adapters as files: a closed schema, and settings that agree with their own tensors."""

import json
from pathlib import Path

import pytest

from core.models import find_model
from core.resolve import resolve
from core.training.contract.weights.adapters import read_adapter
from core.training.contract.weights.files import UnusableWeights
from tests.builders.weight_headers import write_header

RANK = 4
Q_PROJ = "model.layers.0.self_attn.q_proj"
V_PROJ = "model.layers.0.self_attn.v_proj"
SETTINGS: dict[str, object] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "owner/base",
    "r": RANK,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
    "inference_mode": True,
    "init_lora_weights": True,
    "rank_pattern": {},
    "layer_replication": None,
    "loftq_config": {},
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}


def tensors_of(module: str, num_in: int, num_out: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the two matrices of a layer's adapter."""
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": ("F32", (RANK, num_in)),
        f"{name}.lora_B.weight": ("F32", (num_out, RANK)),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an adapter for two layers of the demo."""
    tensors = tensors_of(Q_PROJ, 128, 128) | tensors_of(V_PROJ, 128, 64)
    write_header(tmp_path / "adapter_model.safetensors", tensors)
    return changed(tmp_path)


def changed(folder: Path, **settings: object) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    return folder


def problem(folder: Path) -> str:
    with pytest.raises(UnusableWeights) as caught:
        read_adapter(folder)
    return str(caught.value)


def test_a_sound_adapter_is_read(folder: Path) -> None:
    adapter = read_adapter(folder)
    assert adapter.modules == {Q_PROJ: (RANK, 128, 128), V_PROJ: (RANK, 128, 64)}
    assert adapter.settings["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 10**7),
        ("r", 0),
        ("r", True),
        ("r", "4"),
        ("lora_alpha", -1),
        ("lora_alpha", None),
        ("lora_dropout", 1.5),
        ("peft_type", "ADALORA"),
        ("bias", "all"),
        ("layer_replication", [[0, 4], [2, 4]]),
        ("rank_pattern", {"(.*)*q": 4}),
        ("rank_pattern", {"q_proj": 10**7}),
        ("alpha_pattern", ["q_proj"]),
        ("exclude_modules", "(a+)+$"),
        ("layers_pattern", "(a+)+$"),
        ("modules_to_save", ["(a+)+$"]),
        ("target_modules", {"q_proj": 1}),
        ("eva_config", {"rho": 2}),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("auto_trained_with", "a new setting"),
    ],
)
def test_a_setting_that_is_not_used_here_is_refused(folder: Path, name: str, value: object) -> None:
    assert f"{name} is " in problem(changed(folder, **{name: value}))


def test_a_rank_that_is_not_of_the_tensors_is_refused(folder: Path) -> None:
    changed(folder, r=4096)
    assert f"says rank 4096 for {Q_PROJ}, but its tensors have {RANK}" in problem(folder)


@pytest.mark.parametrize("pattern", [r"(?:.*?(?:language|text).*?q_proj)", "(a+)+$", "all-linear"])
def test_a_pattern_gives_way_to_the_layers_of_the_tensors(folder: Path, pattern: str) -> None:
    adapter = read_adapter(changed(folder, target_modules=pattern))
    assert adapter.settings["target_modules"] == [Q_PROJ, V_PROJ]


def test_layers_that_settings_leave_out_are_named_one_by_one(folder: Path) -> None:
    adapter = read_adapter(changed(folder, layers_to_transform=[0]))
    assert adapter.settings["target_modules"] == [Q_PROJ, V_PROJ]


def test_a_tensor_of_another_kind_is_refused(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", {"prompt_embeddings": ("F32", (8, 64))})
    assert "which is no part of a LoRA adapter" in problem(folder)


def test_half_of_a_pair_is_refused(folder: Path) -> None:
    tensors = tensors_of(Q_PROJ, 128, 128)
    tensors.popitem()
    write_header(folder / "adapter_model.safetensors", tensors)
    assert f"no two matrices that fit for {Q_PROJ}" in problem(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "7", "[" * 100_000])
def test_settings_that_are_no_object_are_refused(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content)
    assert "no adapter that can be read" in problem(folder)


def test_a_pickled_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in problem(folder)


def test_an_adapter_fits_a_model_with_its_layers(folder: Path) -> None:
    assert find_model("demo").adapter_problem(folder) is None


def test_an_adapter_of_another_size_names_its_base(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", tensors_of(Q_PROJ, 32, 128))
    problem = find_model("demo").adapter_problem(changed(folder, target_modules=["q_proj"]))
    assert problem
    assert f"do not fit the model: {Q_PROJ} (128 × 32)" in problem.problem
    assert problem.fix == "choose owner/base as model"


def test_an_adapter_that_is_continued_brings_its_own_settings(folder: Path) -> None:
    job = resolve({"model": "demo", "adapter": str(folder)}).job
    assert (job.lora_r, job.lora_alpha) == (RANK, 8)
    assert job.target_modules == "q_proj,v_proj"


def test_the_estimate_counts_the_rank_of_the_adapter_itself(folder: Path) -> None:
    of_rank_4 = {"lora_r": RANK, "target_modules": "q_proj,v_proj"}
    continued = resolve({"model": "demo", "adapter": str(folder), "lora_r": 64})
    assert continued.estimate() == resolve({"model": "demo", **of_rank_4}).estimate()
