"""LoRA adapters: settings, initialization, loading an earlier one, and writing the result."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.loftq_utils import replace_lora_weights_loftq
from safetensors.torch import load_file, save_file

from ..checkpoints import config_file
from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.stages import STAGES
from ..contract.weights.adapters import (
    CHANGES_BASE,
    SETTINGS,
    WEIGHTS,
    AdapterFiles,
)
from ..contract.weights.adapters import read_adapter as read_adapter_files
from ..contract.weights.files import NUM_SHOWN, UnusableWeights, header_of
from ..contract.weights.parameters import adapted_parameters
from ..data.tokenizer import source_of
from .experts import has_experts, hide_wrong_warning, shapes_of, target_experts
from .weights import require_finite

TOWERS = frozenset({"vision_tower", "vision_model", "multi_modal_projector", "visual"})
"""Modules that read pictures."""
EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})


def lora_config(job: Job, model: Any) -> LoraConfig:
    """Return the settings of a new adapter for a model.

    Raises TrainingError if modules_to_save names a layer that the model does not have.
    """
    init: Any = job.init_lora_weights
    if init in ("default", "loftq"):  # LoftQ replaces PEFT's own initialization afterwards
        init = True
    saved_modules = [name for name in job.modules_to_save.split(",") if name]
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    unknown = [name for name in saved_modules if name.rsplit(".", 1)[-1] not in present]
    if unknown:
        raise TrainingError(f"modules_to_save: {job.model} has no layers {', '.join(unknown)}.")
    saves_embeddings = bool(EMBEDDINGS & set(saved_modules))
    config = LoraConfig(
        task_type="SEQ_CLS" if STAGES[job.stage].head == "score" else "CAUSAL_LM",
        # Saved with the adapter, so that loading it finds the same base.
        revision=source_of(job.model, job.revision).get("revision"),
        r=job.lora_r,
        lora_alpha=job.lora_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=job.lora_dropout,
        target_modules=_target_modules(job, model),
        modules_to_save=saved_modules or None,
        ensure_weight_tying=saves_embeddings and model.config.get_text_config().tie_word_embeddings,
        use_dora=job.use_dora,
        use_rslora=job.use_rslora,
        init_lora_weights=init,
    )
    target_experts(config, job, model)
    return config


def load_adapter(job: Job, model: Any) -> PeftModel:
    """Return the model with the adapter of an earlier run, which continues to train.

    Raises TrainingError if it does not fit.
    """
    adapter = read_adapter(job.adapter, "adapter")
    if not _is_same_model(adapter.base, job.model):
        print(
            f"the adapter was trained over {adapter.base or 'a model that it does not name'}, and "
            f"continues over {job.model}: all of its tensors must fit"
        )
    print(
        f"continuing with the adapter in {adapter.folder}: rank {adapter.settings['r']}, "
        "its own layers and settings"
    )
    return add_adapter(model, adapter, "adapter", is_trainable=True)


def read_adapter(place: str, field: str) -> AdapterFiles:
    """Return the adapter that a field names, or whose run it names.

    Raises TrainingError if there is none that is sound.
    """
    try:
        return read_adapter_files(Path(place))
    except UnusableWeights as error:
        raise TrainingError(f"{field}: {error.problem}: {error.fix}.") from None


def add_adapter(model: Any, adapter: AdapterFiles, field: str, *, is_trainable: bool) -> PeftModel:
    """Return the model with an adapter, each of whose tensors is used, and no others.

    Raises TrainingError, before PEFT makes any tensor, if one does not fit.
    """
    _require_fit(model, adapter, field)
    config = LoraConfig(**adapter.settings)  # type: ignore[arg-type]  # the schema has checked them
    config.base_model_name_or_path = getattr(model, "name_or_path", adapter.base)
    config.revision = adapter.revision
    hide_wrong_warning()
    with_adapter = PeftModel.from_pretrained(
        model,
        str(adapter.folder),
        config=config,
        is_trainable=is_trainable,
        trust_remote_code=False,
    )
    found = get_peft_model_state_dict(with_adapter)
    differing = sorted(found.keys() ^ adapter.tensors.keys())
    differing += sorted(
        name
        for name in found.keys() & adapter.tensors.keys()
        if tuple(found[name].shape) != adapter.tensors[name].shape
    )
    if differing:
        raise _misfit(field, adapter, model, ", ".join(differing[:NUM_SHOWN]))
    require_finite(with_adapter, f"{field} {adapter.folder}")
    return with_adapter


def require_same_adapter(model: Any, checkpoint: Path) -> None:
    """Raise TrainingError unless a checkpoint holds exactly the tensors of the model's adapter."""
    path = checkpoint / WEIGHTS
    if isinstance(model, PeftModel) and path.is_file():
        stored = header_of(path)
        found = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
        differing = sorted(found.keys() ^ stored.keys())
        if differing:
            raise checkpoint_mismatch(differing)


def checkpoint_mismatch(names: Sequence[str]) -> TrainingError:
    """Return the error of a checkpoint that does not hold the weights of the model."""
    return TrainingError(
        f"The checkpoint does not hold the weights of this model: {', '.join(names[:NUM_SHOWN])}. "
        "Delete it, or start a new run.",
        cause="checkpoint_mismatch",
    )


def _require_fit(model: Any, adapter: AdapterFiles, field: str) -> None:
    """Raise TrainingError unless the model has every layer, of the size that the adapter needs."""
    modules = dict(model.named_modules())
    for name, (_rank, num_in, num_out) in adapter.modules.items():
        layer = modules.get(name)
        sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
        if sizes != (num_in, num_out):
            raise _misfit(field, adapter, model, f"{name} ({num_out} × {num_in})")
    try:
        adapted_parameters(adapter, shapes_of(model))
    except UnusableWeights as error:
        raise TrainingError(f"{field}: {error.problem}: {error.fix}.") from None


def _misfit(field: str, adapter: AdapterFiles, model: Any, names: str) -> TrainingError:
    base = adapter.base or "a model that it does not name"
    return TrainingError(
        f"{field}: it was trained over {base}, and these of its tensors do not fit the model: "
        f"{names}: choose {base} as model."
    )


def init_adapter(job: Job, model: Any, initial_file: Path) -> None:
    """Finish an initialization that PEFT does not do alone, once the adapter is on the model.

    Saves the initial weights to `initial_file` if the result can only be written with them.
    """
    if job.init_lora_weights == "loftq":
        if not torch.cuda.is_available():
            raise TrainingError("init_lora_weights: LoftQ needs a CUDA device; choose default.")
        _init_loftq(model, config_file(job).parent)
    if job.init_lora_weights in CHANGES_BASE:
        weights = get_peft_model_state_dict(model)
        lora = {name: value.contiguous() for name, value in weights.items() if ".lora_" in name}
        save_file(lora, initial_file)


def save_only_trained_adapter(model: Any) -> None:
    """Make the model save the adapter that trains, but not TRL's frozen copy for comparisons."""
    if isinstance(model, PeftModel):
        save: Any = partial(model.save_pretrained, selected_adapters=["default"])
        model.save_pretrained = save  # type: ignore[method-assign]


def convert_to_lora(folder: Path, initial_file: Path) -> None:
    """Convert a saved adapter that changed its base into a plain LoRA of twice the rank.

    It then fits the original base. What training added to the initial weights is
    B A - B0 A0 = [B | -B0] [A ; A0]. PEFT can convert it too, but loses modules_to_save.
    """
    weights = load_file(folder / WEIGHTS)
    for name, initial in load_file(initial_file).items():
        if ".lora_A." in name:
            weights[name] = torch.cat([weights[name], initial], dim=0)
        else:
            weights[name] = torch.cat([weights[name], -initial], dim=1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    # The scale stays: alpha / rank, or alpha / sqrt(rank).
    factor = math.sqrt(2) if settings["use_rslora"] else 2
    settings["init_lora_weights"] = True
    settings["r"] *= 2
    settings["lora_alpha"] *= factor
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _init_loftq(model: Any, folder: Path) -> None:
    """LoftQ: start adapters as the best low-rank approximation of the quantization error.

    PEFT would look for a Hub model's main branch, and in one file only. And its adapters
    approximate the error times alpha / rank (_SafetensorLoader and replace_lora_weights_loftq in
    peft/utils/loftq_utils.py).
    """
    replace_lora_weights_loftq(model, model_path=str(folder))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, scale in module.scaling.items():
                module.lora_B[name].weight.data /= scale


def _target_modules(job: Job, model: Any) -> str | list[str]:
    """Return the layers that get an adapter; `all-linear` means attention in a mixture of experts.

    PEFT would also adapt every expert and the router: for Qwen3-30B-A3B a billion parameters at
    rank 16.
    """
    linears = [name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)]
    if any(TOWERS & set(name.split(".")) for name in linears):
        return _decoder_layers(linears, job.target_modules)
    if job.target_modules != "all-linear":
        return job.target_modules.split(",")
    if not has_experts(model):
        return "all-linear"
    return sorted({name.rsplit(".", 1)[-1] for name in linears if ".self_attn." in name})


def _decoder_layers(linears: Sequence[str], target_modules: str) -> list[str]:
    """Return the layers of the text decoder that get an adapter, each by its whole name.

    A vision tower has layers of the same short names, and texts never reach them.
    """
    wanted = set(target_modules.split(","))
    return [
        name
        for name in linears
        if not (TOWERS | {"lm_head"}) & set(name.split("."))
        and (target_modules == "all-linear" or name.rsplit(".", 1)[-1] in wanted)
    ]


def freeze_towers(model: torch.nn.Module) -> None:
    """Leave the layers that read pictures as they are: texts never reach them."""
    for name, parameter in model.named_parameters():
        if TOWERS & set(name.split(".")):
            parameter.requires_grad_(False)


def _is_same_model(base: str, model: str) -> bool:
    """Return True for one name or folder, and for a base that has moved with its last two names."""
    base_path, model_path = Path(base), Path(model)
    if base_path.resolve() == model_path.resolve():
        return True
    has_moved = not base_path.exists() and len(base_path.parts) > 2
    return has_moved and base_path.parts[-2:] == model_path.parts[-2:]
