"""Tiny mixtures of experts of several families, and adapters on their experts."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from core.training.contract.job import Job
from core.training.model.adapter import lora_config
from tests.builders.paths import DEMO
from tests.builders.training_runs import make_stage_run, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Mixture:
    """Tiny mixture, and names of its layers as a job gives them."""

    family: str
    target_modules: str
    config: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """Return the model, always with the same weights."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.family, **SIZES | self.config)
        return AutoModelForCausalLM.from_config(config).eval()


QWEN3 = Mixture("qwen3_moe", "q_proj,gate_proj,up_proj,down_proj", {"num_experts": 4})
MIXTRAL = Mixture("mixtral", "q_proj,v_proj,w1,w2,w3")
GPT_OSS = Mixture("gpt_oss", "q_proj,gate_up_proj,down_proj", {"intermediate_size": 32})
"""Its experts are as wide as the model, so that sizes do not tell which way round they are."""
MIXTURES = {
    "mixtral": MIXTRAL,
    "mixtral_router": Mixture("mixtral", "gate,w1,w2,w3"),
    "mixtral_down": Mixture("mixtral", "w2"),
    "mixtral_fused": Mixture("mixtral", "q_proj,gate_up_proj"),
    "qwen3_moe": QWEN3,
    "qwen2_moe": Mixture(
        "qwen2_moe",
        "q_proj,gate_proj,experts.gate_up_proj,experts.down_proj",
        {"num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "olmoe": Mixture("olmoe", "gate_proj,up_proj,down_proj", {"num_experts": 4}),
    "gpt_oss": GPT_OSS,
    "llama4_text": Mixture("llama4_text", "q_proj,gate_up_proj,experts.down_proj"),
    "phimoe": Mixture("phimoe", "q_proj,gate_up_proj,down_proj"),
    "granitemoe": Mixture("granitemoe", "q_proj,gate_up_proj,down_proj"),
    "deepseek_v3": Mixture(
        "deepseek_v3",
        "kv_b_proj,gate_proj,up_proj,down_proj",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
}  # fmt: skip


def adapted(mixture: Mixture, **fields: Any) -> PeftModel:
    """Return a mixture with a random adapter as a job makes it."""
    model = mixture.model()
    settings: dict[str, Any] = {"lora_r": 4, "lora_alpha": 12.0} | fields
    job = Job(model="", dataset="", target_modules=mixture.target_modules, **settings)
    config: LoraConfig = lora_config(job, model)
    found: Any = get_peft_model(model, config)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) / 10
    return found


def save_run(folder: Path, mixture: Mixture, **fields: Any) -> Job:
    """Write a base, and a run with an adapter over it. Return the run's job."""
    base, run = folder / "base", folder / "run"
    mixture.model().to(torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(base)
    adapted(mixture, **fields).save_pretrained(run / "output")
    AutoTokenizer.from_pretrained(base).save_pretrained(run / "output")
    known = {name: value for name, value in fields.items() if name in ("method", "dtype")}
    return Job(model=str(base), dataset="data/train.jsonl", **known)


def make_mixture_run(folder: Path, mixture: Mixture, **fields: Any) -> Path:
    """Make a run of supervised fine-tuning over a mixture with random weights, beside its base."""
    base = folder / "base"
    tiny_model(base, AutoConfig.for_model(mixture.family, **SIZES | mixture.config))
    fields = {"target_modules": mixture.target_modules, "lora_r": 4, **fields}
    return make_stage_run(folder / "runs" / "experts", "sft", model=str(base), **fields)


def logits(model: Any) -> torch.Tensor:
    """Return the logits of some tokens."""
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def changed_settings(folder: Path, **settings: Any) -> Path:
    """Change the settings of an adapter in a folder."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def without_tensor(model: PeftModel, folder: Path, name: str) -> Path:
    """Save an adapter without the tensors of which the name contains a text."""
    model.save_pretrained(folder)
    kept = {
        key: value for key, value in get_peft_model_state_dict(model).items() if name not in key
    }
    save_file(kept, folder / "adapter_model.safetensors")
    return folder
