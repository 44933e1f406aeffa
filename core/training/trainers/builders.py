"""Stages: which trainer of TRL a job takes and how it is set up. A stage is one function and one line in BUILDERS."""

import copy
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from peft import get_peft_model
from transformers import PrinterCallback, set_seed
from trl.experimental.cpo.cpo_config import CPOConfig
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_config import ORPOConfig
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.methods import METHODS
from ..contract.optimizers import EXTRA_OPTIMIZERS
from ..data.prompts import in_text, that_leave_room
from ..data.rows import Rows
from ..data.tokenizer import source_of
from ..loop.monitor import Watch, Watched
from ..model.compiling import compile_layers, take_inputs_as_they_are
from ..model.load import Loaded
from .rewards import choose_rewards
from .stage_trainer import CountsTokens, ShowsDrawn, Staged

SAME_NAMES = (
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "logging_steps",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "save_total_limit",
    "seed",
    "use_liger_kernel",
    "weight_decay",
)
"""Fields of a job that every trainer of TRL has under the same name."""
SOME_HAVE = (
    "activation_offloading",
    "beta",
    "max_completion_length",
    "max_length",
    "num_generations",
    "temperature",
)
"""Fields of a job that some trainers have under the same name."""
KEEPS_COLUMNS = {"remove_unused_columns": False}
"""What the collator of ORPO and CPO needs."""
PROJECTED = r".*\.(self_attn|attn|mlp)\..*"
"""The layers whose gradients GaLore and APOLLO project to a low rank."""


@dataclass(frozen=True)
class Plan:
    """Which trainer, and what it is given beside what all are given."""

    trainer: type[Any]
    config: type[Any]
    settings: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    additions: tuple[type[Watched], ...] = (Staged,)


def sft(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """Supervised fine-tuning; on whole texts, with every token in the loss, continued pretraining."""
    on_answers = job.assistant_only_loss and rows.has_marked_answers
    if job.assistant_only_loss and not rows.has_marked_answers:
        print("The rows are plain texts without answers: the loss counts every token.")
    settings = {
        "packing": job.packing,
        "packing_strategy": "bfd",
        "assistant_only_loss": on_answers and rows.is_language_modeling,
        "completion_only_loss": on_answers and not rows.is_language_modeling,
    }
    return Plan(SFTTrainer, SFTConfig, settings)


def reward(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """A reward model."""
    return Plan(RewardTrainer, RewardConfig, _dropout(job))


def dpo(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """Direct preference optimisation, against the model as it was loaded; an adapter that goes on is part of it."""
    losses = _loss(job).split("+")
    settings = _dropout(job) | {
        "loss_type": losses,
        "precompute_ref_log_probs": job.precompute_ref_log_probs,
    }
    return Plan(DPOTrainer, DPOConfig, settings, {"ref_model": _reference(job, loaded)})


def kto(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """Kahneman-Tversky optimisation. Each row is held against its neighbours, so that batches stay what they are."""
    settings = _dropout(job) | {
        "precompute_ref_log_probs": job.precompute_ref_log_probs,
        "train_sampling_strategy": "sequential",
    }
    mixed = rows.train.shuffle(seed=job.seed) if job.shuffle else rows.train
    return Plan(
        KTOTrainer,
        KTOConfig,
        settings,
        {"ref_model": _reference(job, loaded), "train_dataset": mixed},
    )


def orpo(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """Odds-ratio preference optimisation."""
    arguments = _with_adapter(job, loaded) | in_text(rows, loaded.tokenizer, job.max_length)
    return Plan(
        ORPOTrainer, ORPOConfig, _dropout(job) | KEEPS_COLUMNS, arguments, (CountsTokens, Staged)
    )


def cpo(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """Contrastive preference optimisation; or SimPO, which has no part that only imitates."""
    weight = 0.0 if job.loss_type == "simpo" else 1.0
    settings = _dropout(job) | KEEPS_COLUMNS | {"loss_type": _loss(job), "cpo_alpha": weight}
    arguments = _with_adapter(job, loaded) | in_text(rows, loaded.tokenizer, job.max_length)
    return Plan(CPOTrainer, CPOConfig, settings, arguments, (CountsTokens, Staged))


def grpo(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """Group-relative policy optimisation."""
    return Plan(GRPOTrainer, GRPOConfig, *_drawing(job, loaded, rows), (ShowsDrawn,))


def rloo(job: Job, loaded: Loaded, rows: Rows) -> Plan:
    """REINFORCE, leaving one out."""
    return Plan(RLOOTrainer, RLOOConfig, *_drawing(job, loaded, rows), (ShowsDrawn,))


def _build(
    plan_for: Callable[[Job, Loaded, Rows], Plan],
    job: Job,
    loaded: Loaded,
    rows: Rows,
    watch: Watch,
) -> Watched:
    """The trainer of a job. Raises TrainingError if no row is left to learn from, or something is missing here."""
    plan = plan_for(job, loaded, rows)
    settings = _settings(job, loaded, rows, plan.config) | plan.settings
    given: dict[str, Any] = {
        "model": loaded.model,
        "args": plan.config(output_dir=str(watch.record.folder / "checkpoints"), **settings),
        "train_dataset": rows.train,
        "eval_dataset": rows.eval,
        "processing_class": loaded.tokenizer,
        "peft_config": loaded.adapter,
        "watch": watch,
        "adapter_dtype": loaded.precision.adapters(loaded.is_quantised),
    }
    kind: Any = type(plan.trainer.__name__, (*plan.additions, plan.trainer), {})
    trainer = kind(**given | plan.arguments)
    num_left = len(trainer.train_dataset)
    if num_left == 0:
        raise TrainingError(
            f"No row is left to learn from: within max_length {job.max_length} there is no answer."
        )
    if num_left < len(rows.train) and not job.packing:
        print(
            f"{len(rows.train) - num_left} of {len(rows.train)} rows are too long for max_length {job.max_length}."
        )
    trainer.remove_callback(PrinterCallback)
    if (
        METHODS[job.method].trains_adapter and not job.use_dora
    ):  # DoRA's norms are taken in the input's precision
        take_inputs_as_they_are(trainer.model)
    if job.torch_compile:
        print(
            "The layers are compiled when they are first used: the first steps take a minute or two longer."
        )
        compile_layers(trainer.model, job.activation_memory_budget)
    watched: Watched = trainer
    return watched


BUILDERS: Mapping[str, Callable[[Job, Loaded, Rows, Watch], Watched]] = MappingProxyType(
    {
        "sft": partial(_build, sft),
        "cpt": partial(_build, sft),
        "reward": partial(_build, reward),
        "dpo": partial(_build, dpo),
        "kto": partial(_build, kto),
        "orpo": partial(_build, orpo),
        "cpo": partial(_build, cpo),
        "grpo": partial(_build, grpo),
        "rloo": partial(_build, rloo),
    }
)


def _settings(job: Job, loaded: Loaded, rows: Rows, config: type[Any]) -> dict[str, Any]:
    """A job in the words of TrainingArguments: most fields by their own name, the exceptions here."""
    on_gpu = torch.cuda.is_available()
    _check_extras(job, on_gpu)
    is_low_rank = job.optim in EXTRA_OPTIMIZERS and EXTRA_OPTIMIZERS[job.optim].is_low_rank
    some = [name for name in SOME_HAVE if name in config.__dataclass_fields__]
    return {name: getattr(job, name) for name in (*SAME_NAMES, *some)} | {
        # a float below 1 is a share of the steps, 1 would be one step
        "warmup_steps": min(float(job.warmup_ratio), 0.999999),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "optim_target_modules": PROJECTED if is_low_rank else None,
        "train_sampling_strategy": "random" if job.shuffle else "sequential",
        "per_device_eval_batch_size": job.per_device_train_batch_size,
        "eval_strategy": "steps" if rows.eval is not None else "no",
        "eval_steps": job.eval_steps or 0.1,  # a float is a share of the steps
        "save_strategy": "steps" if job.save_steps else "epoch",
        "save_steps": job.save_steps or 500,  # not used with epochs, but 0 is refused
        "bf16": loaded.precision.autocast == torch.bfloat16,
        "fp16": loaded.precision.autocast == torch.float16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_nan_inf_filter": False,  # a loss that is not a number is shown as such
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }


def _check_extras(job: Job, on_gpu: bool) -> None:
    """Raises TrainingError for what needs a device or a package that is not here."""
    if job.use_liger_kernel and not on_gpu:
        raise TrainingError("use_liger_kernel needs a CUDA device: switch it off.")
    if job.activation_offloading and not on_gpu:
        raise TrainingError("activation_offloading needs a CUDA device: switch it off.")
    extra = EXTRA_OPTIMIZERS.get(job.optim)
    if extra and importlib.util.find_spec(extra.module) is None:
        raise TrainingError(
            f"optim: {job.optim} needs a package that is not here: pip install {extra.package}"
        )


def _loss(job: Job) -> str:
    return "sigmoid" if job.loss_type == "default" else str(job.loss_type)


def _dropout(job: Job) -> dict[str, Any]:
    """These trainers switch all dropout off unless told not to."""
    return {"disable_dropout": not job.lora_dropout}


def _reference(job: Job, loaded: Loaded) -> Any:
    """A copy of the model as it is now; None where the adapter can be switched off, or the answers are known before.

    TRL would load it once more, from the Hub's main branch whatever the revision.
    """
    if METHODS[job.method].trains_adapter or job.precompute_ref_log_probs:
        return None
    return copy.deepcopy(loaded.model).requires_grad_(False)


def _with_adapter(job: Job, loaded: Loaded) -> dict[str, Any]:
    """The model with its adapter on, for trainers that would widen the rest of a quantised base to float32 with it."""
    if loaded.adapter is None:
        return {}
    set_seed(job.seed)
    return {"model": get_peft_model(loaded.model, loaded.adapter), "peft_config": None}


def _drawing(job: Job, loaded: Loaded, rows: Rows) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, arguments) of the trainers that draw answers."""
    judges, tokenizers = choose_rewards(job, rows, loaded.precision)
    settings: dict[str, Any] = {
        "shuffle_dataset": job.shuffle,
        "per_device_eval_batch_size": job.num_generations,  # the answers to one prompt
    }
    if job.beta and not METHODS[job.method].trains_adapter:  # TRL loads the reference itself
        found = {
            name: value
            for name, value in source_of(job.model, job.revision).items()
            if name == "revision"
        }
        where = (
            {"device_map": {"": 0}} if torch.cuda.is_available() else {}
        )  # its own "auto" may split the model
        settings["model_init_kwargs"] = found | where | {"use_safetensors": True}
    arguments = that_leave_room(rows, loaded.tokenizer, job.max_length - job.max_completion_length)
    return settings, arguments | {"reward_funcs": judges, "reward_processing_classes": tokenizers}
