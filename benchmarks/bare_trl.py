"""A training as a short script with TRL does it: what our own training program is compared with. Never watches.

    python benchmarks/bare_trl.py settings.json

settings.json: `model` (folder), `rows` (JSONL of texts), `config` (SFTConfig), `load` (from_pretrained), `lora`
(LoraConfig, or null), `quantization` (BitsAndBytesConfig, or null). In the folder of the process it leaves
metrics.jsonl, a line `{step, time, num_tokens, loss}` for each that TRL logs, and result.json: the peaks, if there is a
GPU, the seconds of processor time a step took, and the versions.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft")


def train(settings: dict[str, Any], folder: Path) -> None:
    """Trains as the settings say, and leaves metrics.jsonl and result.json in a folder."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Lines(TrainerCallback):  # type: ignore[misc]
        """Writes down when TRL logs."""

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                line = {
                    "step": state.global_step,
                    "time": time.time(),
                    "num_tokens": logs["num_tokens"],
                }
                with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line | {"loss": logs["loss"]}) + "\n")

    rows = load_dataset(
        "json", data_files=settings["rows"], split="train", cache_dir=str(folder / "cache")
    )
    config = {
        "output_dir": str(folder / "out"),
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings["config"],
    }
    trainer = SFTTrainer(
        model=settings["model"],
        args=SFTConfig(
            **config, model_init_kwargs=settings["load"], use_cpu=not torch.cuda.is_available()
        ),
        train_dataset=rows,
        quantization_config=BitsAndBytesConfig(**settings["quantization"])
        if settings["quantization"]
        else None,
        peft_config=LoraConfig(**settings["lora"], task_type="CAUSAL_LM")
        if settings["lora"]
        else None,
        callbacks=[Lines()],
    )
    trainer.train()
    result: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}}
    if torch.cuda.is_available():
        result["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        result["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses several GPUs in one process
    train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path.cwd())
