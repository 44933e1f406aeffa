"""Job: the settings of one training, as job.json holds them. Field names are those of TRL,
Transformers, PEFT and bitsandbytes. core/job/fields.py says what each one means and which values
are allowed.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from .failures import UnusableJob
from .methods import METHODS
from .stages import STAGES, defaults_of
from .typed_json import WrongType, types_of, value_as

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Profile = Literal["fastest", "smallest", "custom"]
LossType = Literal["default", "sigmoid", "ipo", "hinge", "apo_zero", "sigmoid+sft", "simpo"]
Parallelism = Literal["auto", "ddp", "fsdp"]
Scheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "polynomial",
    "cosine_with_min_lr",
    "warmup_stable_decay",
]
OptimizerName = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "adafactor",
    "sgd",
    "galore_adamw",
    "apollo_adamw",
    "schedule_free_adamw",
    "adamw_torch_4bit",
]
Attention = Literal["sdpa", "eager", "flash_attention_2", "varlen", "flex_attention"]
AdapterInit = Literal["default", "gaussian", "pissa", "olora", "loftq"]
QuantType = Literal["nf4", "fp4"]
NO_SUITE = ("off", "eval_loss", "eval_reward")
"""Values of keep_best that name no suite."""
USUAL_SUITES = ("identity", "capabilities")
"""Suites that are asked if a job names none, where there are such."""
CHECK_PREFIX = "check_"
IN_EARLIER_RUNS: Mapping[str, object] = MappingProxyType({"use_chat_template": False})
"""Field -> what the program did before the field existed, so that it goes for job files without it.
"""
PLACES = ("model", "adapter", "reward_model")
"""Job fields that may name a folder."""
PARENT = "../"
SAME_PARTS = 2
"""Last parts of a path that stay when a home is moved: run/output, demo/model."""
CHECK_BATCH_SIZE = 16
"""Tests of a suite that the model answers at once during a training."""
CHECK_PROMPT_TOKENS, CHECK_ANSWER_TOKENS = 256, 64
"""Tokens of a test, with which so many at once are planned. Longer ones are answered fewer at once,
in no more tokens together."""
BATCH_FIELDS = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""Their product is the number of rows that an optimizer step sees on each device."""


@dataclass(frozen=True)
class ExtraOptimizer:
    """Optimizer of Transformers that needs a further package."""

    optim: str
    package: str
    """Name for pip install."""
    module: str
    """Name for import."""
    is_low_rank: bool = False
    """Projects gradients of whole matrices to a low rank. An adapter's have a low rank already."""


_EXTRA_OPTIMIZERS = (
    ExtraOptimizer("galore_adamw", "galore-torch", "galore_torch", is_low_rank=True),
    ExtraOptimizer("apollo_adamw", "apollo-torch", "apollo_torch", is_low_rank=True),
    ExtraOptimizer("schedule_free_adamw", "schedulefree", "schedulefree"),
    ExtraOptimizer("adamw_torch_4bit", "torchao", "torchao"),
)
EXTRA_OPTIMIZERS: Mapping[str, ExtraOptimizer] = MappingProxyType(
    {extra.optim: extra for extra in _EXTRA_OPTIMIZERS}
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of one training. Only `model` and `dataset` must be given."""

    # What is trained
    model: str
    """Hub id or folder."""
    revision: str = "main"
    stage: str = "sft"
    method: str = "lora"
    gpu: str = "local"
    dtype: Dtype = "auto"
    adapter: str = ""
    profile: Profile = "custom"

    # Data
    dataset: str
    """JSONL file; a relative path starts in the run folder."""
    eval_dataset: str = ""
    eval_fraction: float = 0.05
    max_length: int = 2048
    packing: bool = False
    assistant_only_loss: bool = True
    use_chat_template: bool = True
    mix: str = ""
    max_rows: int = 0
    shuffle: bool = True
    max_lost_answers: float = 0.1
    dataset_sha256: str = ""
    accept_unread: bool = False

    # Settings of some stages
    beta: float = 0.1
    loss_type: LossType = "default"
    precompute_ref_log_probs: bool = False
    num_generations: int = 8
    max_completion_length: int = 256
    temperature: float = 1.0
    reward_functions: str = "exact_match"
    reward_pattern: str = ""
    reward_model: str = ""

    # Length and batch
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 8

    # Optimizer
    learning_rate: float = 2e-4
    lr_scheduler_type: Scheduler = "cosine"
    warmup_ratio: float = 0.03
    warmup_steps: int = 0
    min_lr_rate: float = 0.1
    lr_power: float = 2.0
    lr_decay_ratio: float = 0.2
    lr_restart_step: int = 0
    loraplus_lr_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: OptimizerName = "adamw_torch_fused"
    neftune_noise_alpha: float = 0.0
    label_smoothing_factor: float = 0.0

    # Memory against speed
    gradient_checkpointing: bool = True
    checkpoint_every_n_layers: int = 1
    activation_offloading: bool = False
    attn_implementation: Attention = "sdpa"
    use_liger_kernel: bool = False
    torch_compile: bool = False
    activation_memory_budget: float = 1.0

    # Adapter
    lora_r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    target_modules: str = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: AdapterInit = "default"
    modules_to_save: str = ""
    num_trainable_layers: int = 2

    # Quantized base
    bnb_4bit_quant_type: QuantType = "nf4"
    bnb_4bit_use_double_quant: bool = True

    # Logging and saving
    logging_steps: int = 1
    eval_steps: int = 0
    save_steps: int = 0
    save_total_limit: int = 2
    keep_best: str = "off"
    early_stopping_patience: int = 0
    early_stopping_threshold: float = 0.0
    stop_when_diverged: bool = True
    halve_batch_on_oom: bool = True
    device: int = 0
    num_devices: int = 1
    parallelism: Parallelism = "auto"
    sample_steps: int = 0
    num_samples: int = 3
    check_steps: int = 0
    check_suites: str = ""
    seed: int = 42

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Job":
        """Return the job in a job file of any version.

        A field that the file lacks takes the default of its stage and method, else its own, as
        JobSpec does, except those of IN_EARLIER_RUNS; unknown fields are ignored. `differences`
        names both. Raises UnusableJob for a missing model or dataset, a value of a wrong type and
        an unknown stage or method.
        """
        stage, method = values.get("stage", cls.stage), values.get("method", cls.method)
        _require_choice("stage", stage, [each.id for each in STAGES.values() if each.is_trainable])
        _require_choice("method", method, list(METHODS))
        given = {**IN_EARLIER_RUNS, **defaults_of(str(stage), str(method)), **values}
        for each in fields(cls):
            if each.default is MISSING and each.name not in given:
                raise UnusableJob(f"field {each.name} is missing")
        types = types_of(cls)
        known = {name: _read(name, types[name], given[name]) for name in types if name in given}
        if known.get("max_steps") == 0:
            raise UnusableJob("field max_steps is 0, which takes no step; give -1, or 1 and more")
        if known.get("num_devices", 1) < 0:
            raise UnusableJob("field num_devices is below 0; give 0 for all, or 1 and more")
        return cls(**known)

    @classmethod
    def differences(cls, values: Mapping[str, object]) -> tuple[str, ...]:
        """Return a sentence each about the fields that a job file lacks and about those that are
        unknown."""
        known = types_of(cls).keys()
        missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known)
        sentences = []
        if missing:
            sentences.append(f"Not in job.json, so the defaults are used: {', '.join(missing)}.")
        if unknown:
            sentences.append(f"Unknown in job.json, so ignored: {', '.join(unknown)}.")
        return tuple(sentences)

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step."""
        num_passes = self.gradient_accumulation_steps * max(1, self.num_devices)
        return self.per_device_train_batch_size * num_passes

    @property
    def is_sharded(self) -> bool:
        """True if the model is divided among several devices."""
        return is_sharded(self.num_devices, self.parallelism)

    @property
    def trains_adapter(self) -> bool:
        """True if the base is frozen and a LoRA adapter trains."""
        return METHODS[self.method].trains_adapter


def check_metric(suite: str) -> str:
    """Return the name in metrics.jsonl of the share of a suite that passes, in percent."""
    return f"{CHECK_PREFIX}{suite}"


def suite_of(keep_best: str) -> str | None:
    """Return the suite by which the best checkpoint is chosen; None if it is no suite."""
    return None if keep_best in NO_SUITE else keep_best


def is_sharded(num_devices: int, parallelism: object) -> bool:
    """Return True if a model is divided among several devices (FSDP2)."""
    return num_devices > 1 and parallelism == "fsdp"


def _read(name: str, declared: Any, value: object) -> Any:
    try:
        return value_as(declared, value)
    except WrongType:
        choices = get_args(declared)
        wanted = f"one of {', '.join(choices)}" if choices else f"of type {declared.__name__}"
        raise UnusableJob(f"field {name} is {value!r}, which is not {wanted}") from None


def _require_choice(name: str, value: object, choices: list[str]) -> None:
    if value not in choices:
        raise UnusableJob(f"{name} {value!r} is not one of {', '.join(choices)}")


def absolute_places(values: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return the fields of a run's job file with whole paths. `folder` is that of the run."""
    found = dict(values)
    for name in PLACES:
        place = values.get(name)
        if isinstance(place, str) and place.startswith(PARENT):
            found[name] = os.path.normpath(folder / place)
    return found


def relative_places(values: Mapping[str, object], folder: Path, home: Path) -> dict[str, object]:
    """Return the places that lie in a home, as seen from the folder of a run in it."""
    found: dict[str, object] = {}
    for name in PLACES:
        place = Path(str(values.get(name) or ""))
        if place.is_absolute() and place.is_relative_to(home):
            found[name] = Path(os.path.relpath(place, folder)).as_posix()
    return found


def is_moved(name: str, old: object, new: object) -> bool:
    """Return True if two values of a job field may be the same folder in a moved home."""
    if name not in PLACES or not isinstance(old, str) or not isinstance(new, str):
        return False
    if not (Path(old).is_absolute() and Path(new).is_absolute()):
        return False
    return Path(old).parts[-SAME_PARTS:] == Path(new).parts[-SAME_PARTS:]
