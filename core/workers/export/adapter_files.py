"""Adapter of a run as others get it: its weights, settings, tokenizer and the licence of its base,
without a path of this machine."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from core.after_training.export.origin import base_name
from core.runs import Home, read
from core.training.contract.weights.adapters import (
    PREFIX,
    SETTINGS,
    WEIGHTS,
    read_adapter,
    scale_of,
)
from core.workers.export.model_files import copy_licences, copy_tokenizer
from core.workers.export.task import ExportTask


def write_adapter(task: ExportTask, target: Path) -> None:
    """Write the adapter of the run into a folder. Raises OSError."""
    folder = Path(task.request.run_folder)
    run = read(Home(folder.parent.parent), folder.name)
    output = folder / "output"
    target.mkdir(exist_ok=True)
    shutil.copyfile(output / WEIGHTS, target / WEIGHTS)
    base = Path(task.request.base_folder)
    copy_tokenizer(output, base, target)
    copy_licences(task, target)
    settings: dict[str, Any] = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base_name(run)
    (target / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def scale_as_llama_cpp(folder: Path) -> None:
    """Rewrite the adapter in a folder so that it is the same with one scale for all layers, alpha
    / rank: a GGUF file has no other. Raises UnusableWeights, OSError."""
    adapter = read_adapter(folder)
    alpha = float(str(adapter.settings["lora_alpha"]))
    factors = {}
    for module, (rank, _in, _out) in adapter.modules.items():
        factors[module] = scale_of(adapter.settings, module, rank) * rank / alpha
    if all(factor == 1 for factor in factors.values()):
        return
    tensors = load_file(folder / WEIGHTS)
    for module, factor in factors.items():
        name = f"{PREFIX}{module}.lora_B.weight"
        tensors[name] = tensors[name].float() * factor
    save_file(tensors, folder / WEIGHTS)
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings |= {"use_rslora": False, "alpha_pattern": {}}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
