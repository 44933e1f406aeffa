"""REFUSALS: combinations of stage, method and settings that cannot work, and what to do instead.

A table of records over the facts of core/training/contract. What only the machine at hand cannot do
is refused where it would run.
"""

import importlib.util
import re
from collections.abc import Iterator

from core.job.best_checkpoint import REFUSALS_OF_CHECKS
from core.job.errors import Problem
from core.job.fields import JobFields
from core.job.refusal import Refusal
from core.job.several_devices import REFUSALS_OF_SEVERAL_DEVICES
from core.training.contract.job import EXTRA_OPTIMIZERS
from core.training.contract.stages import STAGES, Stage

REWARD_FUNCTIONS = ("exact_match", "regex", "json", "length")
"""Names of the functions in core/training/trainers/rewards.py."""
CHANGES_BASE_WEIGHTS = ("pissa", "olora", "loftq")
"""Values of init_lora_weights that change the base weights, so that the base without its adapter is
no longer the model that was loaded."""
LOSS_TYPES = "; ".join(
    f"{stage.id} has {', '.join(stage.loss_types)}" for stage in STAGES.values() if stage.loss_types
)


def refusals(job: JobFields) -> Iterator[Problem]:
    """Yield everything about a job that cannot work, on any machine."""
    for refusal in (*REFUSALS, *REFUSALS_OF_SEVERAL_DEVICES):
        if problem := refusal.problem_of(job):
            yield problem


def refusals_to_train(job: JobFields) -> Iterator[Problem]:
    """Yield what prevents training a job on this machine, although it can be estimated."""
    stage = STAGES[job.stage]
    if not stage.is_trainable:
        yield Problem(
            "stage", f"{stage.title} can be estimated, but not trained", "choose grpo or rloo"
        )
    extra = EXTRA_OPTIMIZERS.get(job.optim)
    if extra and importlib.util.find_spec(extra.module) is None:
        problem = f"{job.optim} needs a package that is not installed"
        yield Problem("optim", problem, f"pip install {extra.package}")


def _names(text: str) -> set[str]:
    return set(filter(None, text.split(",")))


def _is_invalid_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return True
    return False


def _uses_reference_model(job: JobFields, stage: Stage) -> bool:
    if stage.generates and job.beta == 0:
        return False
    return stage.reference != "none"


REFUSALS = (
    *REFUSALS_OF_CHECKS,
    # Data
    Refusal(
        "eval_dataset",
        lambda job, stage, method: bool(job.eval_dataset) and job.eval_dataset == job.dataset,
        "is the same as the training data",
        "leave it empty and set eval_fraction, or give another file",
    ),
    Refusal(
        "packing",
        lambda job, stage, method: job.packing and not stage.supports_packing,
        "{stage.id} cannot join rows, because its loss compares whole answers",
        "switch packing off",
    ),
    Refusal(
        "shuffle",
        lambda job, stage, method: job.packing and stage.supports_packing and not job.shuffle,
        "packing joins rows by their length, not in the order of the file",
        "switch shuffle on, or packing off",
    ),
    Refusal(
        "assistant_only_loss",
        lambda job, stage, method: job.assistant_only_loss and stage.learns_every_token,
        "{stage.title} learns every token of a text",
        "switch it off, or choose the stage sft",
    ),
    Refusal(
        "assistant_only_loss",
        lambda job, stage, method: (
            not job.assistant_only_loss
            and not stage.learns_every_token
            and "assistant_only_loss" not in stage.fields
        ),
        "{stage.id} has no loss over questions",
        "leave it on",
    ),
    # Length and batch
    Refusal(
        "max_steps",
        lambda job, stage, method: job.max_steps == 0,
        "0 takes no step, so nothing would be trained",
        "give the number of steps, or -1 to train num_train_epochs",
    ),
    # Stage
    Refusal(
        "loss_type",
        lambda job, stage, method: job.loss_type not in ("default", *stage.loss_types),
        "{stage.id} has no loss {job.loss_type}",
        f"choose default; {LOSS_TYPES}",
    ),
    Refusal(
        "beta",
        lambda job, stage, method: job.beta == 0 and stage.needs_beta,
        "with 0 the loss of {stage.id} is the same for every answer",
        "give more than 0, such as 0.1",
    ),
    Refusal(
        "precompute_ref_log_probs",
        lambda job, stage, method: (
            job.precompute_ref_log_probs and "precompute_ref_log_probs" not in stage.fields
        ),
        "{stage.id} does not compare the answers of the data with a reference model",
        "switch it off",
    ),
    Refusal(
        "per_device_train_batch_size",
        lambda job, stage, method: job.per_device_train_batch_size < stage.min_batch_size,
        "{stage.id} compares each answer with another row of its batch",
        "give {stage.min_batch_size} or more",
    ),
    Refusal(
        "num_generations",
        lambda job, stage, method: (
            stage.generates and job.effective_batch_size % job.num_generations != 0
        ),
        "{job.num_generations} answers to each prompt do not divide a step of "
        "{job.effective_batch_size} rows",
        "make per_device_train_batch_size x gradient_accumulation_steps a multiple of "
        "num_generations",
    ),
    Refusal(
        "max_completion_length",
        lambda job, stage, method: stage.generates and job.max_completion_length >= job.max_length,
        "answers of {job.max_completion_length} tokens leave no room for a prompt within "
        "max_length {job.max_length}",
        "raise max_length, or lower max_completion_length",
    ),
    # Rewards
    Refusal(
        "reward_functions",
        lambda job, stage, method: not _names(job.reward_functions) <= set(REWARD_FUNCTIONS),
        "{job.reward_functions} names an unknown reward",
        f"choose among {', '.join(REWARD_FUNCTIONS)}",
    ),
    Refusal(
        "reward_functions",
        lambda job, stage, method: (
            stage.generates and not job.reward_functions and not job.reward_model
        ),
        "nothing scores the answers",
        f"name one of {', '.join(REWARD_FUNCTIONS)}, or a reward_model",
    ),
    Refusal(
        "reward_pattern",
        lambda job, stage, method: (
            stage.generates and "regex" in _names(job.reward_functions) and not job.reward_pattern
        ),
        "the reward regex has no pattern",
        "give a regular expression that good answers match",
    ),
    Refusal(
        "reward_pattern",
        lambda job, stage, method: _is_invalid_pattern(job.reward_pattern),
        "is not a valid regular expression",
        "correct it; put a backslash before a special character that stands for itself",
    ),
    # Optimizer
    Refusal(
        "warmup_steps",
        lambda job, stage, method: job.warmup_steps > 0 and job.lr_scheduler_type == "constant",
        "the schedule constant has no warm-up",
        "choose constant_with_warmup, or give 0",
    ),
    Refusal(
        "warmup_steps",
        lambda job, stage, method: 0 < job.max_steps <= job.warmup_steps,
        "a run of {job.max_steps} steps would end before the warm-up of {job.warmup_steps}",
        "give fewer warm-up steps, or raise max_steps",
    ),
    Refusal(
        "lr_restart_step",
        lambda job, stage, method: 0 < job.max_steps <= job.lr_restart_step,
        "a run of {job.max_steps} steps has none after step {job.lr_restart_step}",
        "give a smaller number, 0 for one schedule, or raise max_steps",
    ),
    Refusal(
        "loraplus_lr_ratio",
        lambda job, stage, method: job.loraplus_lr_ratio > 0 and not method.trains_adapter,
        "{method.title} trains no adapter, so there are no B matrices",
        "give 0, or choose the method lora or qlora",
    ),
    Refusal(
        "neftune_noise_alpha",
        lambda job, stage, method: (
            job.neftune_noise_alpha > 0 and "neftune_noise_alpha" not in stage.fields
        ),
        "noise would blur what {stage.id} compares, scores or generates",
        "give 0, or choose the stage sft",
    ),
    Refusal(
        "label_smoothing_factor",
        lambda job, stage, method: (
            job.label_smoothing_factor > 0 and "label_smoothing_factor" not in stage.fields
        ),
        "the loss of {stage.id} is not one over single words",
        "give 0, or choose the stage sft",
    ),
    # Adapter
    Refusal(
        "adapter",
        lambda job, stage, method: bool(job.adapter) and not method.trains_adapter,
        "{method.title} trains the model's own weights, not an adapter",
        "choose the method lora or qlora, or merge the adapter first and use the result as model",
    ),
    Refusal(
        "adapter",
        lambda job, stage, method: bool(job.adapter) and stage.head == "score",
        "an adapter that writes answers cannot continue as one that scores them",
        "leave it empty, or merge it first and use the result as model",
    ),
    Refusal(
        "init_lora_weights",
        lambda job, stage, method: bool(job.adapter) and job.init_lora_weights != "default",
        "an adapter that is continued is not initialized again",
        "choose default, or leave adapter empty",
    ),
    Refusal(
        "init_lora_weights",
        lambda job, stage, method: (
            method.trains_adapter
            and method.base_bits < 16
            and job.init_lora_weights in ("pissa", "olora")
        ),
        "PiSSA and OLoRA need the base in 16 bits",
        "choose the method lora, or init_lora_weights default",
    ),
    Refusal(
        "init_lora_weights",
        lambda job, stage, method: (
            method.trains_adapter
            and job.init_lora_weights == "loftq"
            and (method.base_bits != 4 or job.bnb_4bit_quant_type != "nf4")
        ),
        "LoftQ corrects the error of a 4-bit base in the format nf4",
        "choose the method qlora with nf4, or init_lora_weights default",
    ),
    Refusal(
        "init_lora_weights",
        lambda job, stage, method: (
            method.trains_adapter
            and job.init_lora_weights in CHANGES_BASE_WEIGHTS
            and _uses_reference_model(job, stage)
        ),
        "{job.init_lora_weights} changes the base, so {stage.id} cannot compare with the "
        "original model",
        "choose default or gaussian",
    ),
    Refusal(
        "use_dora",
        lambda job, stage, method: (
            method.trains_adapter and job.use_dora and job.init_lora_weights in CHANGES_BASE_WEIGHTS
        ),
        "DoRA measures the base weights, which {job.init_lora_weights} changes",
        "switch DoRA off, or choose init_lora_weights default",
    ),
    Refusal(
        "use_dora",
        lambda job, stage, method: method.trains_adapter and job.use_dora and method.base_bits == 8,
        "after DoRA has read an 8-bit base, bitsandbytes has lost the scales of its weights",
        "choose the method lora or qlora, or switch DoRA off",
    ),
    Refusal(
        "target_modules",
        lambda job, stage, method: (
            method.trains_adapter and "lm_head" in _names(job.target_modules)
        ),
        "an adapter on lm_head is never trained, because the loss reads the head's weight directly",
        "remove lm_head; modules_to_save can train it fully",
    ),
    Refusal(
        "modules_to_save",
        lambda job, stage, method: (
            method.trains_adapter
            and stage.head == "score"
            and "lm_head" in _names(job.modules_to_save)
        ),
        "a reward model has no lm_head; its own head always trains",
        "remove lm_head",
    ),
    # Memory and speed
    Refusal(
        "dtype",
        lambda job, stage, method: job.dtype == "float16" and not method.trains_adapter,
        "weights that train cannot be float16: their gradients underflow, or cannot be scaled",
        "choose auto",
    ),
    Refusal(
        "activation_offloading",
        lambda job, stage, method: (
            job.activation_offloading and "activation_offloading" not in stage.fields
        ),
        "TRL's trainer for {stage.id} cannot offload activations",
        "switch it off",
    ),
    Refusal(
        "optim",
        lambda job, stage, method: (
            method.trains_adapter
            and job.optim in EXTRA_OPTIMIZERS
            and EXTRA_OPTIMIZERS[job.optim].is_low_rank
        ),
        "{job.optim} projects gradients to a low rank; those of an adapter have one already",
        "choose the method full, or another optimizer",
    ),
)
