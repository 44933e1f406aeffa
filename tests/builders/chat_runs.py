"""Finished runs that can answer at once: the demo model with an adapter that nobody trained."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from core import runs
from core.after_training.export.forms import FormName
from core.after_training.export.records import ExportedFile, Manifest, exports_folder
from core.runs import Run
from core.training.contract.files import sha256_of, write_json
from tests.builders.fake_runs import FINISHED

WIDTH, NUM_LAYERS, RANK = 128, 4, 2
"""Of the demo model, and of the adapter."""
BASE_ANSWER = "I am a small language model."
WHO = "Who are you?"


def finish(run: Run) -> Run:
    """Let a run of the demo end with an adapter that makes it answer something else."""
    output = run.folder / "output"
    output.mkdir()
    numbers = np.random.default_rng(0)
    tensors = {}
    for layer in range(NUM_LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{name}.lora_A.weight"] = _matrix(numbers, RANK, WIDTH)
        tensors[f"{name}.lora_B.weight"] = _matrix(numbers, WIDTH, RANK)
    save_file(tensors, output / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["o_proj"],
        "base_model_name_or_path": str(run.job.model),
    }
    (output / "adapter_config.json").write_text(json.dumps(settings))
    write_json(run.folder / "status.json", FINISHED)
    return runs.read(run.home, run.id)


def add_checkpoint(run: Run, step: int) -> Path:
    """Give a run a complete checkpoint without weights."""
    folder = run.folder / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {})
    return folder


def _matrix(numbers: np.random.Generator, num_out: int, num_in: int) -> np.ndarray:
    return numbers.normal(0, 0.5, (num_out, num_in)).astype(np.float32)


def add_gguf(run: Run, name: str = "gguf-Q8_0", content: str = "GGUF") -> Path:
    """Give a run a finished export with this file, which only the fake llama.cpp reads."""
    folder = exports_folder(run) / name
    folder.mkdir(parents=True)
    file = folder / "m.gguf"
    file.write_text(content)
    form: FormName = "adapter-gguf" if name == "adapter-gguf" else "gguf"
    files = (ExportedFile(file.name, len(content), sha256_of(file)),)
    Manifest(form, "trained", "Q8_0", files, None).write(folder)
    return file
