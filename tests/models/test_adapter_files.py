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


def two_layers(num_layers: int = 4) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the matrices of two linear layers in each of the demo's layers."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number in range(num_layers):
        for name, num_out in ((Q_PROJ, 128), (V_PROJ, 64)):
            tensors |= tensors_of(name.replace(".0.", f".{number}."), 128, num_out)
    return tensors


def vectors_of_dora(num_out: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a vector of DoRA for each layer; `num_out` is that of the first kind of layer."""
    vectors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (_type, shape) in two_layers().items():
        if name.endswith("lora_B.weight"):
            size = num_out if "q_proj" in name else shape[0]
            vectors[name.replace("lora_B.weight", "lora_magnitude_vector")] = ("F32", (size,))
    return vectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an adapter for two linear layers in each layer of the demo."""
    write_header(tmp_path / "adapter_model.safetensors", two_layers())
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
    assert adapter.modules[Q_PROJ] == (RANK, 128, 128)
    assert adapter.modules[V_PROJ] == (RANK, 128, 64)
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
        ("target_parameters", "mlp.experts.gate_up_proj"),
        ("target_parameters", ["(a+)+$"]),
        ("rank_pattern", {".*\\.(a+)+$": 4}),
        ("auto_trained_with", "a new setting"),
        ("base_model_name_or_path", "\x1b[2Jowner/base"),
        ("base_model_name_or_path", "owner/" + "b" * 10_000),
        ("revision", "main\n"),
    ],
)
def test_a_setting_that_is_not_used_here_is_refused(folder: Path, name: str, value: object) -> None:
    assert f"{name} is " in problem(changed(folder, **{name: value}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, True])
def test_a_wrong_value_is_shown_as_its_file_has_it(folder: Path, value: object) -> None:
    assert f"lora_alpha is {json.dumps(value)}," in problem(changed(folder, lora_alpha=value))


def test_a_setting_that_is_there_twice_is_refused(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 10000000, "r": 4'))
    assert problem(folder) == "adapter_config.json has the key 'r' twice; remove one of them"


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "corda", "OLoRA", "lora_ga"])
def test_an_adapter_that_took_a_part_of_its_base_is_refused(folder: Path, start: str) -> None:
    assert "fits its own run only" in problem(changed(folder, init_lora_weights=start))


def test_a_rank_that_is_not_of_the_tensors_is_refused(folder: Path) -> None:
    changed(folder, r=4096)
    assert f"says rank 4096 for {Q_PROJ}, but its tensors have {RANK}" in problem(folder)


@pytest.mark.parametrize("pattern", [r"(?:.*?(?:language|text).*?q_proj)", "(a+)+$"])
def test_a_pattern_gives_way_to_the_layers_of_the_tensors(folder: Path, pattern: str) -> None:
    adapter = read_adapter(changed(folder, target_modules=pattern))
    assert adapter.settings["target_modules"] == sorted(adapter.modules)


def test_all_linear_means_the_names_of_the_tensors(folder: Path) -> None:
    adapter = read_adapter(changed(folder, target_modules="all-linear"))
    assert adapter.settings["target_modules"] == ["q_proj", "v_proj"]


def test_layers_that_settings_leave_out_are_named_one_by_one(folder: Path) -> None:
    adapter = read_adapter(changed(folder, layers_to_transform=[0]))
    assert adapter.settings["target_modules"] == sorted(adapter.modules)


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


@pytest.mark.parametrize("dtype", ["I32", "F8_E4M3"])
def test_matrices_that_are_no_plain_numbers_are_refused(folder: Path, dtype: str) -> None:
    tensors = {name: (dtype, shape) for name, (_type, shape) in two_layers().items()}
    write_header(folder / "adapter_model.safetensors", tensors)
    assert f"as {dtype}, which no adapter is trained in" in problem(folder)


@pytest.mark.parametrize(
    "name",
    ["base_model.model.model.norm.weight", f"base_model.model.{Q_PROJ}.lora_A.default.weight"],
)
def test_a_tensor_that_no_setting_names_is_refused(folder: Path, name: str) -> None:
    tensors = two_layers() | {name: ("F32", (RANK, 128))}
    write_header(folder / "adapter_model.safetensors", tensors)
    assert f"holds {name}, which adapter_config.json does not name" in problem(folder)


@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
def test_a_grown_vocabulary_is_merged_first(folder: Path, module: str) -> None:
    tensors = two_layers() | {f"base_model.model.{module}.weight": ("F32", (100, 128))}
    write_header(folder / "adapter_model.safetensors", tensors)
    found = find_model("demo").adapter_problem(folder)
    assert found
    assert "its vocabulary has grown" in found.problem
    assert found.fix.startswith("merge it into its base")


def test_a_name_that_would_steer_the_terminal_is_refused(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", {"\x1b[2J": ("F32", (1,))})
    assert "adapter_model.safetensors is damaged" in problem(folder)


def test_a_saved_module_without_tensors_is_refused(folder: Path) -> None:
    assert "names lm_head, of which" in problem(changed(folder, modules_to_save=["lm_head"]))


def test_a_saved_module_of_another_size_does_not_fit(folder: Path) -> None:
    saved = {"base_model.model.model.embed_tokens.weight": ("F32", (100, 128))}
    write_header(folder / "adapter_model.safetensors", two_layers() | saved)
    problem = find_model("demo").adapter_problem(changed(folder, modules_to_save=["embed_tokens"]))
    assert problem
    assert "do not fit the model: model.embed_tokens (100 × 128)" in problem.problem


def test_of_tied_embeddings_both_may_be_saved(folder: Path) -> None:
    saved = {
        f"base_model.model.{name}.weight": ("F32", (2048, 128))
        for name in ("model.embed_tokens", "lm_head")
    }
    write_header(folder / "adapter_model.safetensors", two_layers() | saved)
    changed(folder, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    assert find_model("demo").adapter_problem(folder) is None


def test_vectors_of_dora_without_its_setting_are_refused(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", two_layers() | vectors_of_dora(128))
    assert "holds vectors of DoRA" in problem(folder)


@pytest.mark.parametrize("num_out", [0, 7])
def test_dora_needs_a_vector_for_each_layer(folder: Path, num_out: int) -> None:
    tensors = two_layers() | (vectors_of_dora(num_out) if num_out else {})
    write_header(folder / "adapter_model.safetensors", tensors)
    assert f"no vector of it that fits for {Q_PROJ}" in problem(changed(folder, use_dora=True))


def test_dora_with_its_vectors_is_read(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", two_layers() | vectors_of_dora(128))
    assert read_adapter(changed(folder, use_dora=True)).settings["use_dora"] is True


def test_an_adapter_fits_a_model_with_its_layers(folder: Path) -> None:
    assert find_model("demo").adapter_problem(folder) is None


def test_a_layer_that_settings_name_must_have_matrices(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", two_layers(num_layers=3))
    problem = find_model("demo").adapter_problem(folder)
    assert problem
    assert "no matrices for model.layers.3.self_attn.q_proj" in problem.problem


def test_an_adapter_that_scores_cannot_write(folder: Path) -> None:
    problem = find_model("demo").adapter_problem(changed(folder, task_type="SEQ_CLS"))
    assert problem
    assert problem.problem == "it scores answers, and does not write any"


def test_an_adapter_of_another_size_names_its_base(folder: Path) -> None:
    write_header(folder / "adapter_model.safetensors", tensors_of(Q_PROJ, 32, 128))
    problem = find_model("demo").adapter_problem(changed(folder, target_modules=["q_proj"]))
    assert problem
    assert f"do not fit the model: {Q_PROJ} (128 × 32)" in problem.problem
    assert problem.fix == "choose owner/base as model"


@pytest.mark.parametrize(
    ("base", "fix"),
    [
        ("demo", "copy both files of the adapter again, or those of demo"),
        ("", "choose the model that it was trained over"),
    ],
)
def test_an_adapter_never_names_the_chosen_model(folder: Path, base: str, fix: str) -> None:
    write_header(folder / "adapter_model.safetensors", tensors_of(Q_PROJ, 32, 128))
    settings = {"target_modules": ["q_proj"], "base_model_name_or_path": base}
    problem = find_model("demo").adapter_problem(changed(folder, **settings))
    assert problem
    assert problem.fix == fix


def test_an_adapter_that_is_continued_brings_its_own_settings(folder: Path) -> None:
    job = resolve({"model": "demo", "adapter": str(folder)}).job
    assert (job.lora_r, job.lora_alpha) == (RANK, 8)
    assert job.target_modules == "q_proj,v_proj"


def test_the_estimate_counts_the_rank_of_the_adapter_itself(folder: Path) -> None:
    of_rank_4 = {"lora_r": RANK, "target_modules": "q_proj,v_proj"}
    continued = resolve({"model": "demo", "adapter": str(folder), "lora_r": 64})
    assert continued.estimate() == resolve({"model": "demo", **of_rank_4}).estimate()
