"""The LoRA adapter: its settings, how it starts, how an earlier one goes on, and how its result is written."""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.loftq_utils import replace_lora_weights_loftq
from safetensors.torch import load_file, save_file

from ..checkpoints.identity import config_file
from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.stages import STAGES
from ..data.tokenizer import source_of

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHANGES_BASE = ("pissa", "olora")
"""Ways to start that take something out of the base: their adapters fit no other base."""
EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})


def adapter_settings(job: Job, model: Any) -> LoraConfig:
    """A new adapter for a model. Raises TrainingError if modules_to_save names a layer that the model has not."""
    start: Any = job.init_lora_weights
    if start in ("default", "loftq"):  # LoftQ replaces PEFT's own start afterwards
        start = True
    whole = [name for name in job.modules_to_save.split(",") if name]
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if unknown := [name for name in whole if name.rsplit(".", 1)[-1] not in present]:
        raise TrainingError(f"modules_to_save: {job.model} has no layers {', '.join(unknown)}.")
    return LoraConfig(
        task_type="SEQ_CLS" if STAGES[job.stage].head == "score" else "CAUSAL_LM",
        revision=source_of(job.model, job.revision).get(
            "revision"
        ),  # whoever loads the adapter gets the same base
        r=job.lora_r,
        lora_alpha=job.lora_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=job.lora_dropout,
        target_modules=_targets(job, model),
        modules_to_save=whole or None,
        ensure_weight_tying=bool(EMBEDDINGS & set(whole))
        and model.config.get_text_config().tie_word_embeddings,
        use_dora=job.use_dora,
        use_rslora=job.use_rslora,
        init_lora_weights=start,
    )


def go_on(job: Job, model: Any) -> PeftModel:
    """The model with the adapter of an earlier run, which trains on. Raises TrainingError if it does not fit."""
    folder, settings = find_adapter(job.adapter, "adapter")
    base = str(settings.get("base_model_name_or_path"))
    if not _is_same_model(base, job.model):
        raise TrainingError(
            f"adapter: it was trained over {base}, not over {job.model}: choose that model."
        )
    if settings.get("init_lora_weights") in CHANGES_BASE:
        raise TrainingError(
            "adapter: a checkpoint of this kind fits its own run only: give the run's output."
        )
    print(
        f"going on from the adapter in {folder}: rank {settings.get('r')}, its own layers and settings"
    )
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True, trust_remote_code=False)


def find_adapter(where: str, field: str) -> tuple[Path, Mapping[str, Any]]:
    """(the folder of an adapter, its settings) for a field that names it or the run that it is the result of.

    Raises TrainingError if there is none, or none that can be loaded without running what is in it.
    """
    given = Path(where)
    folder = given if (given / SETTINGS).exists() else given / "output"
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{field}: {given} holds no adapter that can be read: give a run's output."
        ) from error
    if not isinstance(settings, dict) or not (folder / WEIGHTS).exists():
        raise TrainingError(f"{field}: {folder} has no {WEIGHTS} with its settings.")
    return folder, settings


def prepare_start(job: Job, model: Any, kept: Path) -> None:
    """What is to be done once an adapter has been put on a model and does not start as PEFT's plain one.

    `kept` is the file for its numbers at the start, where the result cannot be told without them.
    """
    if job.init_lora_weights == "loftq":
        if not torch.cuda.is_available():
            raise TrainingError("init_lora_weights: LoftQ needs a CUDA device; choose default.")
        _make_good_what_4_bits_lost(model, config_file(job).parent)
    if job.init_lora_weights in CHANGES_BASE:
        numbers = get_peft_model_state_dict(model)
        save_file(
            {name: value.contiguous() for name, value in numbers.items() if ".lora_" in name}, kept
        )


def _make_good_what_4_bits_lost(model: Any, folder: Path) -> None:
    """LoftQ: adapters start as the best approximation of what the base lost, whose weights lie in a folder.

    PEFT would look for a Hub model's main branch, and in one file only; and its adapters make good the loss times
    alpha / rank (_SafetensorLoader and replace_lora_weights_loftq in peft/utils/loftq_utils.py).
    """
    replace_lora_weights_loftq(model, model_path=str(folder))
    adapted = (module for module in model.modules() if isinstance(module, LoraLayer))
    for module in adapted:
        for name, scale in module.scaling.items():
            module.lora_B[name].weight.data /= scale


def save_one(model: Any) -> None:
    """From now on only the adapter that trains is saved, not the copy that TRL makes of it for comparisons."""
    if isinstance(model, PeftModel):
        model.save_pretrained = partial(model.save_pretrained, selected_adapters=["default"])  # type: ignore[method-assign]


def rewrite_as_lora(folder: Path, kept: Path) -> None:
    """Makes of a saved adapter that changed its base a plain LoRA of twice the rank, which fits the base as it was.

    What training added to what it started from: B A - B0 A0 = [B | -B0] [A ; A0]. PEFT can do it too, but leaves out
    the layers that train whole.
    """
    weights, start = load_file(folder / WEIGHTS), load_file(kept)
    for name, before in start.items():
        is_a = ".lora_A." in name
        weights[name] = torch.cat(
            [weights[name], before if is_a else -before], dim=0 if is_a else 1
        )
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    scale = (
        math.sqrt(2) if settings["use_rslora"] else 2
    )  # alpha / rank, or alpha / its root, stays
    settings |= {
        "init_lora_weights": True,
        "r": 2 * settings["r"],
        "lora_alpha": scale * settings["lora_alpha"],
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _targets(job: Job, model: Any) -> str | list[str]:
    """The layers that get an adapter. In a mixture of experts `all-linear` means those of the attention.

    PEFT would also adapt every expert and the router there: for Qwen3-30B-A3B a billion parameters at rank 16.
    """
    if job.target_modules != "all-linear":
        return str(job.target_modules).split(",")
    config = model.config.get_text_config()
    if not (getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)):
        return "all-linear"
    layers = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in layers if ".self_attn." in name})


def _is_same_model(one: str, other: str) -> bool:
    """True for one name or folder, and for a folder of the same name if the first is there no more."""
    paths = Path(one), Path(other)
    if paths[0].resolve() == paths[1].resolve():
        return True
    return (
        not paths[0].exists()
        and len(paths[0].parts) > 2
        and paths[0].parts[-2:] == paths[1].parts[-2:]
    )
