"""Runs with random adapters over tiny models, and what PEFT makes of them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from core.after_training.export import launch
from core.after_training.export.plan import plan_export
from core.after_training.export.records import ExportRequest
from core.runs import Run
from core.training.contract.job import Job
from core.workers.export.task import ExportTask
from tests.builders.paths import DEMO

TINY_LLAMA = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class AdapterCase:
    """Adapter over a tiny model."""

    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    shard_size: str = "5GB"


def make_case(folder: Path, case: AdapterCase) -> ExportTask:
    """Make a base, and a run with a random adapter over it. Return the task that exports it."""
    base, run = folder / "base", folder / "run"
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.family, **TINY_LLAMA | case.config)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(base, max_shard_size=case.shard_size)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(base)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}
    wanted = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings | case.adapter)
    adapted = get_peft_model(model.float(), wanted)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data += torch.randn_like(parameter) / 10
    adapted.save_pretrained(run / "output")
    AutoTokenizer.from_pretrained(base).save_pretrained(run / "output")
    job = job_over(base, **case.job)
    (run / "job.json").write_text(json.dumps(asdict(job)))
    request = ExportRequest("merged", "merged", "trained", str(run), str(base))
    (folder / "task").mkdir()
    return ExportTask(folder / "task", request)


def job_over(base: Path, **fields: Any) -> Job:
    """Return a job that trains over a base."""
    return Job(model=str(base), dataset="data/train.jsonl", **fields)


def merged_by_peft(task: ExportTask, job: Job) -> dict[str, torch.Tensor]:
    """Return the weights that PEFT merges in float32, rounded to bfloat16."""
    settings: dict[str, Any] = {}
    if job.method == "qlora":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=job.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=job.bnb_4bit_use_double_quant,
        )
    base = AutoModelForCausalLM.from_pretrained(
        task.request.base_folder, dtype=torch.float32, **settings
    )
    if job.method == "qlora":
        base = base.dequantize(dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, Path(task.request.run_folder) / "output")
    merged = adapted.merge_and_unload()
    state = merged.state_dict()
    return {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder, as transformers names them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return dict(model.state_dict())


def export(run: Run, form: str, **settings: str) -> Any:
    """Export the result of a run, and return the export once it is finished."""
    name = launch.start(run, plan_export(run, form, **settings))
    status = launch.wait(run, name, lambda _status: None)
    assert status.error == ""
    return launch.result_of(run, name)
