"""REFUSALS: the combinations of stage, method and settings that cannot work, each with its reason and what to do.

A table of records over the facts of core/methods.py. What only the machine at hand cannot do is refused where it runs.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.job.errors import Problem
from core.training.contract.methods import METHODS, Method
from core.training.contract.optimizers import EXTRA_OPTIMIZERS
from core.training.contract.stages import STAGES, Stage

if TYPE_CHECKING:
    from core.job.spec import JobSpec

REWARD_FUNCTIONS = ("exact_match", "regex", "json", "length")
SHIFTS_BASE = ("pissa", "olora", "loftq")
"""Ways for an adapter to start after which the base without it is no longer the model that was loaded."""


@dataclass(frozen=True)
class Case:
    """A job with the rows of its stage and its method."""

    job: "JobSpec"
    stage: Stage
    method: Method


@dataclass(frozen=True)
class Refusal:
    """A combination of fields that cannot work."""

    field: str
    """The JobSpec field to change."""
    applies: Callable[[Case], bool]
    problem: str
    """May name the attributes of a Case, such as {stage.id}."""
    fix: str

    def told(self, case: Case) -> Problem:
        """Return the problem in the words of one case."""
        facts = vars(case)
        return Problem(self.field, self.problem.format_map(facts), self.fix.format_map(facts))


def refusals(job: "JobSpec") -> Iterator[Problem]:
    """Yield everything about a job that cannot work, wherever it runs."""
    case = Case(job, STAGES[job.stage], METHODS[job.method])
    return (each.told(case) for each in REFUSALS if each.applies(case))


def refusals_to_train(job: "JobSpec") -> Iterator[Problem]:
    """Yield what keeps a job from being trained on this machine, though it can be estimated."""
    case = Case(job, STAGES[job.stage], METHODS[job.method])
    if not case.stage.is_trainable:
        yield Problem(
            "stage",
            f"{case.stage.title} can be estimated, but not trained",
            "choose grpo or rloo",
        )
    extra = EXTRA_OPTIMIZERS.get(job.optim)
    if extra and importlib.util.find_spec(extra.module) is None:
        yield Problem(
            "optim",
            f"{job.optim} needs a package that is not here",
            f"pip install {extra.package}",
        )


def _named(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def _is_no_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return True
    return False


def _compares(case: Case) -> bool:
    """True if the answers of the model as it was are asked for."""
    return case.stage.reference != "none" and not (case.stage.generates and case.job.beta == 0)


REFUSALS = (
    # Data
    Refusal(
        "eval_dataset",
        lambda case: bool(case.job.eval_dataset) and case.job.eval_dataset == case.job.dataset,
        "is the training data itself",
        "leave it empty and set eval_fraction, or give another file",
    ),
    Refusal(
        "packing",
        lambda case: case.job.packing and not case.stage.supports_packing,
        "rows of {stage.id} cannot be joined: its loss compares whole answers",
        "switch packing off",
    ),
    Refusal(
        "shuffle",
        lambda case: case.job.packing and case.stage.supports_packing and not case.job.shuffle,
        "packing joins rows by their length, not in the order of the file",
        "switch shuffle on, or packing off",
    ),
    Refusal(
        "assistant_only_loss",
        lambda case: case.stage.id == "cpt" and case.job.assistant_only_loss,
        "continued pretraining learns every token of a text",
        "switch it off, or choose the stage sft",
    ),
    Refusal(
        "assistant_only_loss",
        lambda case: case.stage.id not in ("sft", "cpt") and not case.job.assistant_only_loss,
        "{stage.id} has no loss over questions that could be switched on",
        "leave it on",
    ),
    # What the stage asks for
    Refusal(
        "loss_type",
        lambda case: (
            case.job.loss_type != "default" and case.job.loss_type not in case.stage.loss_types
        ),
        "{job.loss_type} is no loss of {stage.id}",
        "choose default; dpo has sigmoid, ipo, hinge, apo_zero, sigmoid+sft, and cpo has sigmoid, simpo, hinge, ipo",
    ),
    Refusal(
        "beta",
        lambda case: case.job.beta == 0 and case.stage.id in ("dpo", "kto", "cpo"),
        "0 makes the loss of {stage.id} the same whatever the answers",
        "give more than 0, such as 0.1",
    ),
    Refusal(
        "precompute_ref_log_probs",
        lambda case: (
            case.job.precompute_ref_log_probs
            and "precompute_ref_log_probs" not in case.stage.fields
        ),
        "{stage.id} asks no reference model about rows that are known beforehand",
        "switch it off",
    ),
    Refusal(
        "per_device_train_batch_size",
        lambda case: case.job.per_device_train_batch_size < case.stage.min_batch_size,
        "{stage.id} compares each answer with another row of its batch",
        "give {stage.min_batch_size} or more",
    ),
    Refusal(
        "num_generations",
        lambda case: (
            case.stage.generates and case.job.effective_batch_size % case.job.num_generations != 0
        ),
        "{job.num_generations} answers to each prompt do not fill a step of {job.effective_batch_size} rows",
        "make per_device_train_batch_size x gradient_accumulation_steps a multiple of num_generations",
    ),
    Refusal(
        "max_completion_length",
        lambda case: case.stage.generates and case.job.max_completion_length >= case.job.max_length,
        "answers of {job.max_completion_length} tokens leave no room for a prompt within max_length {job.max_length}",
        "raise max_length, or lower max_completion_length",
    ),
    # Rewards
    Refusal(
        "reward_functions",
        lambda case: bool(set(_named(case.job.reward_functions)) - set(REWARD_FUNCTIONS)),
        "{job.reward_functions} names a reward that there is not",
        f"choose among {', '.join(REWARD_FUNCTIONS)}",
    ),
    Refusal(
        "reward_functions",
        lambda case: (
            case.stage.generates and not (case.job.reward_functions or case.job.reward_model)
        ),
        "nothing judges the answers",
        f"name one of {', '.join(REWARD_FUNCTIONS)}, or a reward_model",
    ),
    Refusal(
        "reward_pattern",
        lambda case: (
            case.stage.generates
            and "regex" in _named(case.job.reward_functions)
            and not case.job.reward_pattern
        ),
        "the reward regex has no pattern",
        "give the pattern that an answer should hold",
    ),
    Refusal(
        "reward_pattern",
        lambda case: _is_no_pattern(case.job.reward_pattern),
        "is no regular expression",
        "correct it; a sign that is meant as itself stands behind a backslash",
    ),
    # The adapter
    Refusal(
        "adapter",
        lambda case: bool(case.job.adapter) and not case.method.trains_adapter,
        "{method.title} trains the model's own weights, not an adapter",
        "choose the method lora or qlora, or merge the adapter first and take the result as the model",
    ),
    Refusal(
        "adapter",
        lambda case: bool(case.job.adapter) and case.stage.head == "score",
        "an adapter that writes answers cannot go on as one that scores them",
        "leave it empty, or merge it first and take the result as the model",
    ),
    Refusal(
        "init_lora_weights",
        lambda case: bool(case.job.adapter) and case.job.init_lora_weights != "default",
        "an adapter that goes on does not start anew",
        "choose default, or leave adapter empty",
    ),
    Refusal(
        "init_lora_weights",
        lambda case: (
            case.method.trains_adapter
            and case.method.base_bits < 16
            and case.job.init_lora_weights in ("pissa", "olora")
        ),
        "PiSSA and OLoRA need the base in 16 bits",
        "choose the method lora, or init_lora_weights default",
    ),
    Refusal(
        "init_lora_weights",
        lambda case: (
            case.method.trains_adapter
            and case.job.init_lora_weights == "loftq"
            and (case.method.base_bits != 4 or case.job.bnb_4bit_quant_type != "nf4")
        ),
        "LoftQ makes good what a 4-bit base lost, in the code book nf4",
        "choose the method qlora with nf4, or init_lora_weights default",
    ),
    Refusal(
        "init_lora_weights",
        lambda case: (
            case.method.trains_adapter
            and case.job.init_lora_weights in SHIFTS_BASE
            and _compares(case)
        ),
        "{job.init_lora_weights} changes the base, so that {stage.id} could not compare with the model as it was",
        "choose default or gaussian",
    ),
    Refusal(
        "use_dora",
        lambda case: (
            case.method.trains_adapter
            and case.job.use_dora
            and case.job.init_lora_weights in SHIFTS_BASE
        ),
        "DoRA measures the base that {job.init_lora_weights} changes",
        "switch DoRA off, or choose init_lora_weights default",
    ),
    Refusal(
        "use_dora",
        lambda case: (
            case.method.trains_adapter and case.job.use_dora and case.method.base_bits == 8
        ),
        "once DoRA has read an 8-bit base, bitsandbytes has lost the scales of its weights",
        "choose the method lora or qlora, or switch DoRA off",
    ),
    Refusal(
        "target_modules",
        lambda case: case.method.trains_adapter and "lm_head" in _named(case.job.target_modules),
        "an adapter on lm_head is never trained, because the loss reads the head's weight directly",
        "remove lm_head; modules_to_save can train it whole",
    ),
    Refusal(
        "modules_to_save",
        lambda case: (
            case.method.trains_adapter
            and case.stage.head == "score"
            and "lm_head" in _named(case.job.modules_to_save)
        ),
        "a reward model has no lm_head; its own head always trains",
        "remove lm_head",
    ),
    # Memory against speed
    Refusal(
        "dtype",
        lambda case: case.job.dtype == "float16" and not case.method.trains_adapter,
        "weights that train cannot be kept in float16: their gradients vanish, or cannot be scaled",
        "choose auto",
    ),
    Refusal(
        "activation_offloading",
        lambda case: (
            case.job.activation_offloading and "activation_offloading" not in case.stage.fields
        ),
        "TRL's trainer for {stage.id} cannot offload activations",
        "switch it off",
    ),
    Refusal(
        "optim",
        lambda case: (
            case.method.trains_adapter
            and case.job.optim in EXTRA_OPTIMIZERS
            and EXTRA_OPTIMIZERS[case.job.optim].is_low_rank
        ),
        "{job.optim} projects the gradients of whole matrices; an adapter's have a low rank already",
        "choose the method full, or another optimizer",
    ),
)
