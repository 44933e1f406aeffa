"""Adapter of a run as others get it: its weights, settings, tokenizer and the licence of its base,
without a path of this machine."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from core.after_training.export.origin import base_name
from core.runs import Home, read
from core.training.contract.weights.adapters import (
    PREFIX,
    SETTINGS,
    WEIGHTS,
    AdapterFiles,
    read_adapter,
    scale_of,
)
from core.training.contract.weights.files import stored_tensors
from core.training.model.weights import BaseRequest, empty_model
from core.workers.export.experts import find_experts
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


def write_for_llama_cpp(task: ExportTask, target: Path) -> None:
    """Write the adapter of the run as llama.cpp's converter reads it: with one scale for all
    layers, and a pair of matrices for each expert. Raises UnusableWeights, OSError."""
    write_adapter(task, target)  # the converter puts the place of the base into the file
    adapter = read_adapter(target)
    if not adapter.parameters:
        scale_as_llama_cpp(target)
        return
    base = Path(task.request.base_folder)
    apart = _apart(adapter, base)
    scale_as_llama_cpp(target)
    tensors = load_file(target / WEIGHTS)
    for place in adapter.parameters:
        for side in "AB":
            del tensors[f"{PREFIX}{place}.lora_{side}.weight"]
    save_file(tensors | apart, target / WEIGHTS)
    settings: dict[str, Any] = json.loads((target / SETTINGS).read_text(encoding="utf-8"))
    settings |= {"target_parameters": None, "rank_pattern": {}}
    (target / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _apart(adapter: AdapterFiles, base: Path) -> dict[str, torch.Tensor]:
    """Return the matrices of each expert by the names that the base gives it, with one scale."""
    model = empty_model(BaseRequest(str(base), "main", torch.bfloat16))
    found, _renamed = find_experts(adapter, stored_tensors(base), model)
    tensors = load_file(adapter.folder / WEIGHTS)
    alpha = float(str(adapter.settings["lora_alpha"]))
    apart = {}
    for each in {each.parameter.name: each for each in found.values()}.values():
        factors = each.factors(tensors[each.down].float(), tensors[each.up].float())
        for name, (up, down) in factors.items():
            module = name.removesuffix(".weight")
            scale = each.scale * each.parameter.rank / alpha
            apart[f"{PREFIX}{module}.lora_A.weight"] = down.clone()
            apart[f"{PREFIX}{module}.lora_B.weight"] = (up * scale).contiguous()
    return apart


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
