"""Train with TRL as a short script does. training_speed.py compares our training program with it.

    python benchmarks/bare_trl.py settings.json

settings.json has the fields

    model           folder of the model
    rows            JSONL file of texts
    config          arguments of SFTConfig
    load            arguments of from_pretrained
    lora            arguments of LoraConfig, or null
    quantization    arguments of BitsAndBytesConfig, or null

Writes two files into the current folder: metrics.jsonl, a line `{step, time, num_tokens, loss}` for
each time that TRL logs; and result.json, the package versions and, on a GPU, the memory peaks.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

PACKAGES = ("torch", "transformers", "trl", "peft")


def train(settings: dict[str, Any], folder: Path) -> None:
    """Train as the settings say, and write metrics.jsonl and result.json into a folder."""
    import torch
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    from benchmarks.trl_log import LossWriter

    rows = load_dataset(
        "json", data_files=settings["rows"], split="train", cache_dir=str(folder / "cache")
    )
    config = {
        "output_dir": str(folder / "out"),
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings["config"],
    }
    has_gpu = torch.cuda.is_available()
    trainer = SFTTrainer(
        model=settings["model"],
        args=SFTConfig(**config, model_init_kwargs=settings["load"], use_cpu=not has_gpu),
        train_dataset=rows,
        callbacks=[LossWriter(folder / "metrics.jsonl")],
        **_method_of(settings),
    )
    trainer.train()
    result: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}}
    if has_gpu:
        result["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        result["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _method_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the trainer's arguments for LoRA and quantization."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    arguments: dict[str, Any] = {}
    if settings["lora"]:
        arguments["peft_config"] = LoraConfig(**settings["lora"], task_type="CAUSAL_LM")
    if settings["quantization"]:
        arguments["quantization_config"] = BitsAndBytesConfig(**settings["quantization"])
    return arguments


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses several GPUs in one process
    train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path.cwd())
