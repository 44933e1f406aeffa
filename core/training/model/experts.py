"""Adapters on the experts of a mixture, which transformers keeps as a few parameters of a layer.

Such a parameter is no layer: PEFT changes it directly (target_parameters).
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch.nn.modules.conv import _ConvNd

from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.weights.adapters import EXPERTS
from ..contract.weights.parameters import EXPERT_INITIALIZATIONS, targeted


def target_experts(config: LoraConfig, job: Job, model: torch.nn.Module) -> None:
    """Let the settings of a new adapter name the parameters that hold experts, and say which.

    Raises TrainingError for settings that PEFT cannot train on them.
    """
    _take_parameters(config, model)
    try:
        # PEFT would do so while it adds the adapter. Done before, the settings say it.
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError as error:
        raise TrainingError(f"target_modules: {error}") from None
    if not config.target_parameters:
        return
    hide_wrong_warning()
    found = targeted(sorted(config.target_parameters), shapes_of(model))
    names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in found))
    asked = {
        "lora_dropout": (job.lora_dropout, "0"),
        "use_dora": (job.use_dora, "false"),
        "init_lora_weights": (job.init_lora_weights not in EXPERT_INITIALIZATIONS, "default"),
    }
    for field, (is_on, fix) in asked.items():
        if is_on:
            raise TrainingError(
                f"{field}: PEFT has none for {names}, the experts of this mixture: choose {fix}, "
                "or leave out the experts."
            )
    print(
        f"target_modules: {names} hold all experts of a layer: each expert gets matrices of its "
        "own, and each forward pass a changed copy of the layer's experts"
    )


def has_experts(model: torch.nn.Module) -> bool:
    """Return True for a mixture of experts, as transformers names them."""
    return any(name.rpartition(".")[2] == EXPERTS for name, _module in model.named_modules())


def shapes_of(model: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Return the sizes of the parameters of a model, in its order."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def is_transposed(model: torch.nn.Module, parameter: str) -> bool:
    """Return True if each expert in a parameter is stored [in, out], as PEFT reads it."""
    module: Any = model.get_submodule(parameter.rpartition(".")[0])
    return bool(getattr(module, "is_transposed", False))


def hide_wrong_warning() -> None:
    """Hide a warning of PEFT that a rank for experts is ignored: it looks for it among layers."""
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not")


def _take_parameters(config: LoraConfig, model: torch.nn.Module) -> None:
    """Move names that mean experts, and no layer, from target_modules to target_parameters."""
    if not isinstance(config.target_modules, set | list):
        return
    experts = {
        f"{name}.{parameter}": tuple(value.shape)
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for parameter, value in module.named_parameters(recurse=False)
        if value.dim() == 3
    }
    layers = [
        f".{name}" for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)
    ]
    moved = {
        name
        for name in config.target_modules
        if targeted([name], experts) and not any(each.endswith(f".{name}") for each in layers)
    }
    if moved:
        config.target_modules = sorted(set(config.target_modules) - moved)
        config.target_parameters = sorted({*(config.target_parameters or []), *moved})
