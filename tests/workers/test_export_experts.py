"""Test that merging adapters on experts gives what PEFT gives, however files hold the experts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.after_training.export.records import ExportRequest
from core.training.contract.job import Job
from core.training.contract.weights.files import UnusableWeights
from core.workers.export.forms import write_merged
from core.workers.export.task import ExportTask
from tests.builders.exports import loaded, merged_by_peft
from tests.builders.mixtures import GPT_OSS, MIXTRAL, MIXTURES, QWEN3, Mixture, save_run

pytestmark = pytest.mark.filterwarnings("ignore")
"""What PEFT and transformers warn of is not ours."""


def make_task(folder: Path, mixture: Mixture, **fields: Any) -> tuple[ExportTask, Job]:
    job = save_run(folder, mixture, **fields)
    (folder / "run" / "job.json").write_text(json.dumps(asdict(job)))
    request = ExportRequest(
        "merged", "merged", "trained", str(folder / "run"), str(folder / "base")
    )
    (folder / "task").mkdir()
    return ExportTask(folder / "task", request), job


def merged(task: ExportTask, job: Job) -> dict[str, torch.Tensor]:
    write_merged(task, job, task.files)
    return loaded(task.files)


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


@pytest.mark.parametrize("name", MIXTURES)
def test_merging_experts_equals_peft(tmp_path: Path, name: str) -> None:
    task, job = make_task(tmp_path, MIXTURES[name])
    assert_equal(merged(task, job), merged_by_peft(task, job))


@pytest.mark.parametrize("mixture", [MIXTRAL, GPT_OSS], ids=["mixtral", "gpt_oss"])
def test_merging_experts_over_4_bits_equals_peft(tmp_path: Path, mixture: Mixture) -> None:
    task, job = make_task(tmp_path, mixture, method="qlora", dtype="float32")
    assert_equal(merged(task, job), merged_by_peft(task, job))


def test_rslora_and_other_ranks_equal_peft(tmp_path: Path) -> None:
    task, job = make_task(tmp_path, QWEN3, use_rslora=True, lora_r=3)
    assert_equal(merged(task, job), merged_by_peft(task, job))


def test_experts_that_files_hold_in_one_tensor_equal_peft(tmp_path: Path) -> None:
    task, job = make_task(tmp_path, QWEN3)
    model = QWEN3.model().to(torch.bfloat16)
    save_file(dict(model.state_dict()), tmp_path / "base" / "model.safetensors")
    assert_equal(merged(task, job), merged_by_peft(task, job))


def test_the_merged_files_name_experts_as_those_of_the_base(tmp_path: Path) -> None:
    task, job = make_task(tmp_path, MIXTRAL)
    write_merged(task, job, task.files)
    found = load_file(task.files / "model.safetensors")
    assert found.keys() == load_file(tmp_path / "base" / "model.safetensors").keys()


def test_every_expert_changes(tmp_path: Path) -> None:
    task, job = make_task(tmp_path, MIXTRAL)
    write_merged(task, job, task.files)
    found = load_file(task.files / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    experts = [name for name in base if ".experts." in name]
    assert [name for name in experts if torch.equal(found[name], base[name])] == []


def test_a_base_without_one_of_its_experts_is_refused(tmp_path: Path) -> None:
    task, job = make_task(tmp_path, MIXTRAL)
    path = tmp_path / "base" / "model.safetensors"
    kept = {name: each for name, each in load_file(path).items() if ".experts.3.w1" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(UnusableWeights, match=r"other parts of .*experts\.gate_up_proj"):
        write_merged(task, job, task.files)


def test_a_base_with_other_experts_is_refused(tmp_path: Path) -> None:
    task, job = make_task(tmp_path, MIXTRAL)
    other = Mixture("mixtral", "", {"intermediate_size": 64})
    other.model().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    with pytest.raises(UnusableWeights, match="in the model, with rank 8; choose"):
        write_merged(task, job, task.files)
