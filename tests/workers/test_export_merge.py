"""Test that merging from files gives what PEFT gives, value for value."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.training.contract.failures import Stopped
from core.training.contract.weights.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.training.contract.weights.files import UnusableWeights, stored_tensors
from core.workers.export.forms import write_merged
from core.workers.export.layers import BaseRounding, MergedWeights, Move, find_changes, unmoved
from core.workers.export.merge import quantized_layers
from core.workers.export.shards import Tensors
from core.workers.export.task import ExportTask
from tests.builders.exports import AdapterCase, job_over, loaded, make_case, merged_by_peft

pytestmark = pytest.mark.filterwarnings("ignore")
"""What PEFT and transformers warn of is not ours."""
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
TIED = {"tie_word_embeddings": True}
QLORA = {"method": "qlora", "dtype": "float32"}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CASES = {
    "lora": AdapterCase(adapter={"target_modules": ALL}),
    "rslora": AdapterCase(adapter={"use_rslora": True}),
    "dora": AdapterCase(adapter={"use_dora": True, "target_modules": ALL}),
    "rank patterns": AdapterCase(
        adapter={"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}}
    ),
    "whole head": AdapterCase(adapter={"modules_to_save": ["lm_head"]}),
    "tied": AdapterCase(config=TIED, adapter=EMBEDDINGS),
    "shards": AdapterCase(adapter={"target_modules": ALL}, shard_size="100KB"),
    "qlora": AdapterCase(adapter={"target_modules": ALL}, job=QLORA),
    "qlora, fp4, single": AdapterCase(
        adapter={"target_modules": ALL},
        job=QLORA | {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    ),
    "qlora with dora": AdapterCase(adapter={"use_dora": True}, job=QLORA),
    "mixture of experts": AdapterCase(family="mixtral", config=EXPERTS),
    "qlora over experts": AdapterCase(family="mixtral", config=EXPERTS, job=QLORA),
}

HEAD_ONLY = AdapterCase(config=TIED, adapter={"target_modules": ["lm_head"]})
"""LoRA on a head that the base shares with its embeddings, which stay as they were."""


def merged(task: ExportTask, case: AdapterCase) -> Path:
    """Merge a case and return the folder."""
    write_merged(task, job_over(Path(task.request.base_folder), **case.job), task.files)
    return task.files


@pytest.mark.parametrize("name", CASES)
def test_merging_equals_peft(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    task = make_case(tmp_path, case)
    found = loaded(merged(task, case))
    wanted = merged_by_peft(task, job_over(Path(task.request.base_folder), **case.job))
    assert found.keys() == wanted.keys()
    different = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    assert different == []


def test_only_linear_layers_of_the_decoder_were_quantized(tmp_path: Path) -> None:
    make_case(tmp_path, CASES["mixture of experts"])
    layers = quantized_layers(tmp_path / "base")
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_trained_head_no_longer_shares_the_embeddings(tmp_path: Path) -> None:
    task = make_case(tmp_path, HEAD_ONLY)
    found, base = loaded(merged(task, HEAD_ONLY)), loaded(tmp_path / "base")
    head = merged_by_peft(task, job_over(tmp_path / "base"))["lm_head.weight"]
    config = json.loads((task.files / "config.json").read_text())
    assert torch.equal(found["lm_head.weight"], head)
    assert torch.equal(found["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert config["tie_word_embeddings"] is False


def test_a_killed_merge_continues_with_the_same_bytes(tmp_path: Path) -> None:
    case = CASES["shards"]
    task = make_case(tmp_path, case)
    whole = {path.name: path.read_bytes() for path in merged(task, case).glob("*.safetensors")}
    kept = min(whole)
    for name in sorted(whole)[1:]:
        (task.files / name).unlink()
    written = (task.files / kept).stat().st_mtime_ns
    again = {path.name: path.read_bytes() for path in merged(task, case).glob("*.safetensors")}
    assert again == whole
    assert (task.files / kept).stat().st_mtime_ns == written


def test_a_stop_leaves_no_half_file(tmp_path: Path) -> None:
    case = CASES["shards"]
    task = make_case(tmp_path, case)
    (task.folder / "stop").touch()
    with pytest.raises(Stopped):
        merged(task, case)
    assert list(task.files.glob("*.part")) == []


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    task = make_case(tmp_path / "one", CASES["lora"])
    other = make_case(tmp_path / "other", AdapterCase(config={"hidden_size": 32, "head_dim": 8}))
    request = replace(task.request, base_folder=other.request.base_folder)
    with pytest.raises(UnusableWeights, match="the base has"):
        merged(ExportTask(task.folder, request), CASES["lora"])


def test_a_tensor_of_the_adapter_without_a_layer_is_refused(tmp_path: Path) -> None:
    task = make_case(tmp_path, AdapterCase(config={"num_hidden_layers": 3}))
    smaller = make_case(tmp_path / "smaller", AdapterCase())
    request = replace(task.request, base_folder=smaller.request.base_folder)
    with pytest.raises(UnusableWeights, match="no place for"):
        merged(ExportTask(task.folder, request), AdapterCase())


def test_the_folder_names_a_tokenizer_class_that_others_know(tmp_path: Path) -> None:
    folder = merged(make_case(tmp_path, CASES["lora"]), CASES["lora"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "is_local" not in settings


def weights_of(task: ExportTask, move: Move) -> tuple[MergedWeights, dict[str, str]]:
    """Return the merged weights of a case of qlora, and the modules of what its adapter changes."""
    base = Path(task.request.base_folder)
    tensors = stored_tensors(base)
    adapter, changes = find_changes(tensors, Path(task.request.run_folder) / "output", False)
    rounding = BaseRounding("nf4", True, quantized_layers(base), in_float32=True)
    files = Tensors({name: base / tensor.file for name, tensor in tensors.items()})
    file = adapter.folder / ADAPTER_WEIGHTS
    modules = {name: name.removesuffix(".weight") for name in changes.low_rank}
    return MergedWeights(files, file, changes, rounding, move), modules


def test_weights_are_computed_where_they_are_moved(tmp_path: Path) -> None:
    task = make_case(tmp_path, CASES["qlora with dora"])
    moved: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor)
        return tensor

    weights, modules = weights_of(task, note)
    (name, module), *_others = modules.items()
    weights.tensor(name, module)
    assert len(moved) == len(("weight", "down", "up", "magnitude"))
    weights.tensor("model.norm.weight", "model.norm")
    assert len(moved) == len(("weight", "down", "up", "magnitude"))


def test_a_weight_too_large_for_the_gpu_is_merged_on_the_cpu(tmp_path: Path) -> None:
    task = make_case(tmp_path, CASES["qlora"])

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    there, modules = weights_of(task, unmoved)
    refused, _modules = weights_of(task, refuse)
    for name, module in modules.items():
        assert torch.equal(refused.tensor(name, module), there.tensor(name, module))


def test_a_whole_result_comes_with_the_licences_of_its_line(tmp_path: Path) -> None:
    task = make_case(tmp_path, CASES["lora"])
    base, origin = Path(task.request.base_folder), tmp_path / "origin"
    shutil.copytree(base, Path(task.request.run_folder) / "output", dirs_exist_ok=True)
    origin.mkdir()
    (origin / "LICENSE").write_text("Free.")
    request = replace(task.request, base_folder="", origin_folder=str(origin))
    folder = merged(ExportTask(task.folder, request), AdapterCase(job={"method": "full"}))
    assert (folder / "LICENSE").read_text() == "Free."
