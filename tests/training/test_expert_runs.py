"""Runs that train adapters on experts: resumed, continued, answered with and merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.after_training.export.records import ExportRequest
from core.training.contract.job import Job
from core.workers.export.forms import write_merged
from core.workers.export.task import ExportTask
from core.workers.trained_model import load_trained
from tests.builders.exports import loaded, merged_by_peft
from tests.builders.mixtures import GPT_OSS, MIXTRAL, QWEN3, make_mixture_run
from tests.builders.training_runs import (
    FINISHED,
    error_of,
    lines_of,
    logits_of,
    losses_of,
    make_stage_run,
    train,
    train_in_two_parts,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
RUNS = {
    "lora": (MIXTRAL, {}),
    "qlora": (MIXTRAL, {"method": "qlora"}),
    "gpt_oss": (GPT_OSS, {"use_rslora": True}),
    "qwen3_moe": (QWEN3, {"lora_r": 3}),
}


def job_of(run: Path) -> Job:
    return Job.from_json(json.loads((run / "job.json").read_text()))


@pytest.fixture(scope="module", params=RUNS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run for each of RUNS."""
    mixture, fields = RUNS[request.param]
    run = make_mixture_run(
        tmp_path_factory.mktemp("experts"), mixture, learning_rate=1e-2, **fields
    )
    assert train(run) == FINISHED
    return run


def test_experts_train(trained: Path) -> None:
    weights = load_file(trained / "output" / "adapter_model.safetensors")
    experts = {name: each for name, each in weights.items() if ".experts." in name}
    assert [name for name, each in experts.items() if not each.any()] == []


def test_a_run_of_experts_answers_as_trained(trained: Path) -> None:
    found = load_trained(job_of(trained), trained / "output")
    with found.without_adapter():
        before = logits_of(found.model)
    assert not torch.equal(logits_of(found.model), before)


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_experts_is_merged_as_peft_does(trained: Path, tmp_path: Path) -> None:
    job = job_of(trained)
    request = ExportRequest("merged", "merged", "trained", str(trained), job.model)
    (tmp_path / "task").mkdir()
    task = ExportTask(tmp_path / "task", request)
    write_merged(task, job, task.files)
    wanted = merged_by_peft(task, job)
    found = loaded(task.files)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_a_run_of_experts_resumes_with_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_mixture_run(tmp_path / "whole", MIXTRAL, max_steps=4)
    assert train(whole) == FINISHED
    halved = make_stage_run(tmp_path / "halved", "sft", **_fields_of(whole))
    train_in_two_parts(halved, 2, monkeypatch)
    assert losses_of(halved) == losses_of(whole)


@pytest.mark.parametrize("stage", ["sft", "dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_an_adapter_on_experts_is_trained_further(
    trained: Path, stage: str, tmp_path: Path
) -> None:
    job = job_of(trained)
    fields = {"model": job.model, "method": job.method, "adapter": str(trained)}
    run = make_stage_run(tmp_path / "run", stage, **fields)
    assert train(run) == FINISHED
    assert _settings_of(run) == _settings_of(trained)


def test_dpo_after_experts_starts_at_its_reference(trained: Path, tmp_path: Path) -> None:
    job = job_of(trained)
    fields = {"model": job.model, "method": job.method, "adapter": str(trained), "max_steps": 1}
    run = make_stage_run(tmp_path / "run", "dpo", **fields)
    assert train(run) == FINISHED
    first = lines_of(run)[0]
    # Over 4 bits on a CPU the copy that is compared with is rounded, with layers too.
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4)


def test_dropout_on_experts_is_refused_in_words(tmp_path: Path) -> None:
    run = make_mixture_run(tmp_path, MIXTRAL, lora_dropout=0.1)
    assert error_of(run).startswith("lora_dropout: PEFT has none for gate_up_proj, down_proj")


def _fields_of(run: Path) -> dict[str, Any]:
    job = job_of(run)
    return {
        "model": job.model,
        "target_modules": job.target_modules,
        "lora_r": job.lora_r,
        "max_steps": job.max_steps,
    }


def _settings_of(run: Path) -> dict[str, Any]:
    """Return what an adapter says of its layers and ranks."""
    known = json.loads((run / "output" / "adapter_config.json").read_text())
    pattern = {key.rpartition(".")[2]: rank for key, rank in known["rank_pattern"].items()}
    names = ("r", "lora_alpha", "use_rslora")
    targets = {name: sorted(known[name]) for name in ("target_modules", "target_parameters")}
    return {name: known[name] for name in names} | targets | {"rank_pattern": pattern}
