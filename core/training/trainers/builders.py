"""BUILDERS: the trainer of TRL for each stage, and its settings. A stage is one function and one
line."""

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from peft import get_peft_model
from transformers import PrinterCallback, set_seed
from trl.experimental.cpo.cpo_config import CPOConfig
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_config import ORPOConfig
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer import grpo_trainer, rloo_trainer
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
from ..contract.job import EXTRA_OPTIMIZERS, Job
from ..contract.stages import STAGES
from ..data.encoders import encoder_for
from ..data.prompts import preferences_as_text, prompts_up_to
from ..data.rows import Rows
from ..data.tokenized import (
    tokenized,
    tokenized_pairs,
    tokenized_texts,
    tokenized_verdicts,
)
from ..data.tokens import Encoder
from ..loop.monitor import MonitorCallback
from ..loop.trainer import MonitoredTrainer
from ..model.compiling import compile_layers, skip_adapter_input_cast
from ..model.load import LoadedModel
from .rewards import choose_rewards
from .sharding import references_divided_by_layer, sharding_settings
from .smoothing import SmoothsLabels, require_linear_head
from .stage_trainer import (
    CountsTokens,
    LearnsChosenAnswer,
    LearnsChosenAnswerToo,
    LearnsChosenPrompt,
    LogsCompletions,
    StageTrainer,
    TakesTokens,
)

# fmt: off
SHARED_FIELDS = (
    "gradient_accumulation_steps", "gradient_checkpointing", "learning_rate", "logging_steps",
    "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs", "optim",
    "per_device_train_batch_size", "save_total_limit", "seed", "use_liger_kernel", "weight_decay",
)
"""Job fields that every trainer of TRL has under the same name."""
OPTIONAL_FIELDS = (
    "activation_offloading", "beta", "max_completion_length", "max_length", "num_generations",
    "temperature",
)
"""Job fields that some trainers have under the same name."""
# fmt: on
KEEPS_COLUMNS = {"remove_unused_columns": False}
"""Setting that the data collator of ORPO and CPO needs."""
PROJECTED_LAYERS = r".*\.(self_attn|attn|mlp)\..*"
"""Layers whose gradients GaLore and APOLLO project to a low rank."""


@dataclass(frozen=True)
class TrainerPlan:
    """Trainer of a stage, with what it gets beside the settings and arguments that all get."""

    trainer: type[Any]
    config: type[Any]
    settings: Mapping[str, Any]
    """Fields of `config`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `trainer`."""
    mixins: tuple[type[MonitoredTrainer], ...] = (StageTrainer,)


def sft(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Supervised fine-tuning; or continued pretraining, with every token in the loss."""
    if job.assistant_only_loss and not rows.has_marked_answers:
        print("The rows are plain texts without answers: the loss counts every token.")
    # The rows come in tokens with labels, so TRL must not look for the answers itself.
    settings = {
        "packing": job.packing,
        "packing_strategy": "bfd",
        "assistant_only_loss": False,
        "completion_only_loss": False,
    }
    mixins: tuple[type[MonitoredTrainer], ...] = (StageTrainer,)
    if job.label_smoothing_factor:
        require_linear_head(loaded.model)
        mixins = (SmoothsLabels, StageTrainer)
    data = tokenized(rows, _encoder(job, loaded, rows))
    return TrainerPlan(SFTTrainer, SFTConfig, settings, {**data}, mixins)


def reward(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Reward model."""
    data = tokenized_texts(rows, _encoder(job, loaded, rows))
    return TrainerPlan(RewardTrainer, RewardConfig, _dropout_setting(job), {**data})


def dpo(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Direct preference optimization against the model as loaded, an earlier adapter included."""
    settings = {
        **_dropout_setting(job),
        "loss_type": _loss_type(job).split("+"),
        "precompute_ref_log_probs": job.precompute_ref_log_probs,
    }
    data = tokenized_pairs(rows, _encoder(job, loaded, rows))
    arguments = {**data, "ref_model": _reference(job, loaded)}
    mixins = (LearnsChosenAnswerToo, TakesTokens, StageTrainer)
    return TrainerPlan(DPOTrainer, DPOConfig, settings, arguments, mixins)


def kto(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Kahneman-Tversky optimization. Rows are compared with others of their batch."""
    settings = {
        **_dropout_setting(job),
        "precompute_ref_log_probs": job.precompute_ref_log_probs,
        "train_sampling_strategy": "sequential",
    }
    arguments = {**tokenized_verdicts(rows, _encoder(job, loaded, rows))}
    train = arguments["train_dataset"]
    if job.shuffle and train is not None:
        arguments["train_dataset"] = train.shuffle(seed=job.seed)
    mixins = (TakesTokens, StageTrainer)
    arguments["ref_model"] = _reference(job, loaded)
    return TrainerPlan(KTOTrainer, KTOConfig, settings, arguments, mixins)


def orpo(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Odds-ratio preference optimization."""
    settings = {**_dropout_setting(job), **KEEPS_COLUMNS}
    arguments = _text_pair_arguments(job, loaded, rows)
    mixins = (LearnsChosenPrompt, CountsTokens, StageTrainer)
    return TrainerPlan(ORPOTrainer, ORPOConfig, settings, arguments, mixins)


def cpo(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Contrastive preference optimization; or SimPO, which has no likelihood term."""
    settings = {
        **_dropout_setting(job),
        **KEEPS_COLUMNS,
        "loss_type": _loss_type(job),
        "cpo_alpha": 0.0 if job.loss_type == "simpo" else 1.0,
    }
    arguments = _text_pair_arguments(job, loaded, rows)
    mixins = (LearnsChosenAnswer, CountsTokens, StageTrainer)
    return TrainerPlan(CPOTrainer, CPOConfig, settings, arguments, mixins)


def grpo(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """Group-relative policy optimization."""
    arguments = _online_arguments(job, loaded, rows)
    return TrainerPlan(GRPOTrainer, GRPOConfig, online_settings(job), arguments, (LogsCompletions,))


def rloo(job: Job, loaded: LoadedModel, rows: Rows) -> TrainerPlan:
    """REINFORCE leave-one-out."""
    arguments = _online_arguments(job, loaded, rows)
    return TrainerPlan(RLOOTrainer, RLOOConfig, online_settings(job), arguments, (LogsCompletions,))


BUILDERS: Mapping[str, Callable[[Job, LoadedModel, Rows], TrainerPlan]] = MappingProxyType(
    {
        "sft": sft,
        "cpt": sft,
        "reward": reward,
        "dpo": dpo,
        "kto": kto,
        "orpo": orpo,
        "cpo": cpo,
        "grpo": grpo,
        "rloo": rloo,
    }
)


def build_trainer(
    job: Job, loaded: LoadedModel, rows: Rows, monitor: MonitorCallback
) -> MonitoredTrainer:
    """Return the trainer of a job.

    Raises TrainingError if no row is left to learn from, or the job needs something that is missing
    here.
    """
    _require_extras(job)
    plan = BUILDERS[job.stage](job, loaded, rows)
    settings = {**_shared_settings(job, loaded, rows, plan.config), **plan.settings}
    arguments = {
        "model": loaded.model,
        "args": plan.config(output_dir=str(monitor.run_files.folder / "checkpoints"), **settings),
        "train_dataset": rows.train,
        "eval_dataset": rows.eval,
        "processing_class": loaded.tokenizer,
        "peft_config": loaded.adapter,
        "monitor": monitor,
        "adapter_dtype": loaded.precision.adapters(loaded.is_quantized),
        **plan.arguments,
    }
    # The mixins come first, so that their methods call those of TRL's trainer as `super()`.
    trainer_class: Any = type(plan.trainer.__name__, (*plan.mixins, plan.trainer), {})
    with _references_are_copies(loaded.model), references_divided_by_layer():
        trainer: MonitoredTrainer = trainer_class(**arguments)
    _report_lost_rows(job, rows, num_left=len(trainer.train_dataset))  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    if job.trains_adapter and not job.use_dora:  # DoRA computes norms in the input's precision
        skip_adapter_input_cast(trainer.model)
    if job.torch_compile:
        print(
            "The layers are compiled when they are first used: the first steps take a minute or "
            "two longer."
        )
        compile_layers(trainer.model, job.activation_memory_budget)
    return trainer


def _report_lost_rows(job: Job, rows: Rows, num_left: int) -> None:
    """Print how many rows the trainer has dropped. Raises TrainingError if none is left."""
    if num_left == 0:
        raise TrainingError(
            f"No row is left to learn from: within max_length {job.max_length} there is no answer."
        )
    num_lost = len(rows.train) - num_left
    if num_lost > 0 and not job.packing:
        print(
            f"{num_lost} of {len(rows.train)} rows are left out: within max_length "
            f"{job.max_length} they have no answer that counts."
        )


def _shared_settings(
    job: Job, loaded: LoadedModel, rows: Rows, config: type[Any]
) -> dict[str, Any]:
    """Return a job as fields of TrainingArguments: most by their own name, the exceptions here."""
    on_gpu = torch.cuda.is_available()
    extra = EXTRA_OPTIMIZERS.get(job.optim)
    optional = [name for name in OPTIONAL_FIELDS if name in config.__dataclass_fields__]
    settings = {name: getattr(job, name) for name in (*SHARED_FIELDS, *optional)}
    settings["optim_target_modules"] = None
    if extra and extra.is_low_rank:
        settings["optim_target_modules"] = PROJECTED_LAYERS
    settings["train_sampling_strategy"] = "random" if job.shuffle else "sequential"
    settings["eval_strategy"] = "no" if rows.eval is None else "steps"
    settings["save_strategy"] = "steps" if job.save_steps else "epoch"
    if job.is_sharded:
        settings |= sharding_settings(loaded.model)
    return {
        **settings,
        # A float below 1 is a share of the steps; 1 would be one step.
        "warmup_steps": job.warmup_steps or min(float(job.warmup_ratio), 0.999999),
        "neftune_noise_alpha": job.neftune_noise_alpha or None,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "per_device_eval_batch_size": STAGES[job.stage].evaluation_rows(
            job.per_device_train_batch_size, job.num_generations
        ),
        "prediction_loss_only": True,  # keep no logits of an evaluation
        "eval_steps": job.eval_steps or 0.1,  # a float is a share of the steps
        "save_steps": job.save_steps or 500,  # not used with epochs, but 0 is refused
        "bf16": loaded.precision.autocast == torch.bfloat16,
        "fp16": loaded.precision.autocast == torch.float16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_nan_inf_filter": False,  # show a loss that is not a number as it is
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }


def _require_extras(job: Job) -> None:
    """Raise TrainingError for a setting that needs a device or a package that is not here."""
    if not torch.cuda.is_available():
        for name in ("use_liger_kernel", "activation_offloading"):
            if getattr(job, name):
                raise TrainingError(f"{name} needs a CUDA device: switch it off.")
    extra = EXTRA_OPTIMIZERS.get(job.optim)
    if extra and importlib.util.find_spec(extra.module) is None:
        raise TrainingError(
            f"optim: {job.optim} needs a package that is not here: pip install {extra.package}"
        )


def _encoder(job: Job, loaded: LoadedModel, rows: Rows) -> Encoder:
    """Return the encoder of a stage whose trainer gets tokens: that of the check and the preview.

    TRL's own printing of a conversation loses what a template prints in another way once an answer
    follows.
    """
    encoder = encoder_for(loaded.tokenizer, job.stage, rows.train[0], job.assistant_only_loss)
    assert isinstance(encoder, Encoder)
    return encoder


def _loss_type(job: Job) -> str:
    return "sigmoid" if job.loss_type == "default" else job.loss_type


def _dropout_setting(job: Job) -> dict[str, Any]:
    """Return the setting that keeps LoRA dropout: preference trainers disable it by default."""
    return {"disable_dropout": not job.lora_dropout}


def _reference(job: Job, loaded: LoadedModel) -> Any:
    """Return a frozen copy of the model as the reference model.

    None where the trainer can switch the adapter off instead, or asks the model once before the
    training. TRL would load the model a second time, from the Hub's main branch at any revision.
    """
    if job.trains_adapter or job.precompute_ref_log_probs:
        return None
    return copy.deepcopy(loaded.model).requires_grad_(False)


@contextmanager
def _references_are_copies(model: Any) -> Iterator[None]:
    """Let the online trainers copy the model that was loaded and checked as their reference.

    By themselves they load it a second time, from its name alone.
    """

    def copy_model(*_arguments: Any, **_settings: Any) -> Any:
        return copy.deepcopy(model).requires_grad_(False).eval()

    name = "create_model_from_path"
    originals = [(module, getattr(module, name)) for module in (grpo_trainer, rloo_trainer)]
    for module, _original in originals:
        setattr(module, name, copy_model)
    try:
        yield
    finally:
        for module, original in originals:
            setattr(module, name, original)


def _text_pair_arguments(job: Job, loaded: LoadedModel, rows: Rows) -> dict[str, Any]:
    """Return the datasets of ORPO and CPO, and the model with its adapter on.

    If they added the adapter, they would also cast the rest of a quantized base to float32.
    """
    arguments: dict[str, Any] = {
        **preferences_as_text(rows, loaded.tokenizer, job.max_length, job.stage)
    }
    if loaded.adapter is not None:
        set_seed(job.seed)
        arguments["model"] = get_peft_model(loaded.model, loaded.adapter)
        arguments["peft_config"] = None
    return arguments


def online_settings(job: Job) -> dict[str, Any]:
    """Return the settings of the trainers that generate answers."""
    settings: dict[str, Any] = {"shuffle_dataset": job.shuffle}
    return settings


def _online_arguments(job: Job, loaded: LoadedModel, rows: Rows) -> dict[str, Any]:
    """Return the prompts that leave room for an answer, and the rewards."""
    rewards, tokenizers = choose_rewards(job, rows, loaded.precision)
    max_prompt_length = job.max_length - job.max_completion_length
    return {
        **prompts_up_to(rows, loaded.tokenizer, max_prompt_length),
        "reward_funcs": rewards,
        "reward_processing_classes": tokenizers,
    }
