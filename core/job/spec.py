"""JobSpec: the one description of a job. The form, the command line, the job file, the estimate and the training
program all key on its field names. Owns validation and its words; never touches the disk or the network.

Field names are those of TRL, Transformers, PEFT and bitsandbytes, so that knowledge carries over.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.job.errors import Problem, SpecError
from core.job.rules import refusals
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, defaults_of

Optimizer = Literal[
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
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f]*$")]


class JobSpec(BaseModel):
    """What is asked of a training: flat, frozen, complete. Build one with `JobSpec.parse`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # What is trained
    model: Name = Field(
        "demo", min_length=1, description="Base model: a preset, a Hub id (owner/name) or a folder."
    )
    revision: Name = Field(
        "main", min_length=1, description="Branch, tag or commit of a Hub model."
    )
    stage: str = Field("sft", description="Objective.")
    method: str = Field("lora", description="Which weights train and how the base is stored.")
    gpu: str = Field("local", description="Card the job is for: `local` or a GPU preset.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Precision of the weights as loaded; auto is bfloat16 where the GPU has it.",
    )

    adapter: Name = Field(
        "", description="Folder of an earlier run's adapter to go on from; empty starts a new one."
    )
    profile: Literal["fastest", "smallest", "custom"] = Field(
        "custom", description="Who chooses what only trades memory for speed: Tailor, or you."
    )

    # On which data
    dataset: Name = Field(
        "demo", min_length=1, description="Training data: a JSONL file, or `demo`."
    )
    eval_dataset: Name = Field(
        "", description="Evaluation data: a JSONL file; empty takes a part of the training data."
    )
    eval_fraction: float = Field(
        0.05, ge=0, le=0.5, description="Share of the training rows held out for evaluation."
    )
    max_length: int = Field(
        2048,
        ge=8,
        le=1_048_576,
        description="Longest row in tokens; longer rows are cut at the end.",
    )
    packing: bool = Field(
        False, description="Join short rows into full-length ones, without attention between them."
    )
    assistant_only_loss: bool = Field(
        True, description="Learn from the answers only, not from the questions."
    )
    mix: str = Field(
        "",
        max_length=20_000,
        description="More training files with weights, one a line: path = 0.5.",
    )
    max_rows: int = Field(0, ge=0, le=10**9, description="Rows taken for a quick try; 0 takes all.")
    shuffle: bool = Field(
        True, description="Train in random order; off keeps the order of the file."
    )
    max_lost_answers: float = Field(
        0.1, ge=0, le=1, description="Share of rows that may lose their whole answer to max_length."
    )
    dataset_sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="Content that the file must still have at the start; empty is any.",
    )

    # What the stage asks for
    beta: float = Field(0.1, ge=0, le=100, description="Pull back to the reference model.")
    loss_type: Literal["default", "sigmoid", "ipo", "hinge", "apo_zero", "sigmoid+sft", "simpo"] = (
        Field("default", description="Form of the preference loss.")
    )
    precompute_ref_log_probs: bool = Field(
        False,
        description="Ask the reference model once, before the training, instead of keeping it at hand.",
    )
    num_generations: int = Field(8, ge=2, le=1024, description="Answers drawn for each prompt.")
    max_completion_length: int = Field(
        256, ge=1, le=65_536, description="Longest answer drawn, in tokens."
    )
    temperature: float = Field(1.0, gt=0, le=10, description="How freely answers are drawn.")
    reward_functions: str = Field(
        "exact_match",
        pattern=r"^([a-z_]+(,[a-z_]+)*)?$",
        description="Built-in rewards, with commas: exact_match, regex, json, length.",
    )
    reward_pattern: str = Field(
        "", max_length=1000, description="What the reward `regex` looks for in an answer."
    )
    reward_model: Name = Field(
        "", description="Reward model: a finished run's folder or a Hub id; empty uses none."
    )

    # How long, how much at once
    num_train_epochs: float = Field(
        3.0, gt=0, le=10_000, description="Passes over the training data."
    )
    max_steps: int = Field(
        -1, ge=-1, le=100_000_000, description="Optimizer steps; -1 lets the epochs decide."
    )
    per_device_train_batch_size: int = Field(
        2, ge=1, le=4096, description="Rows in one forward pass on each device."
    )
    gradient_accumulation_steps: int = Field(
        8, ge=1, le=65_536, description="Forward passes per optimizer step."
    )

    # The optimizer
    learning_rate: float = Field(2e-4, gt=0, le=10, description="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="How the learning rate moves after warm-up."
    )
    warmup_ratio: float = Field(
        0.03, ge=0, le=1, description="Share of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1e6, description="Gradients are scaled down to this norm; 0 never scales."
    )
    optim: Optimizer = Field(
        "adamw_torch_fused", description="Optimizer and the precision of its states."
    )

    # Memory against speed
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass instead of keeping them."
    )
    checkpoint_every_n_layers: int = Field(
        1,
        ge=1,
        le=1000,
        description="With checkpointing, one layer of this many is recomputed; 1 is all of them.",
    )
    activation_offloading: bool = Field(
        False,
        description="Keep activations in main memory until the backward pass (needs a CUDA device).",
    )
    attn_implementation: Literal[
        "sdpa", "eager", "flash_attention_2", "varlen", "flex_attention"
    ] = Field(
        "sdpa",
        description="Attention kernel; varlen reads packed rows unmasked, flex_attention those with capped scores too.",
    )
    use_liger_kernel: bool = Field(
        False,
        description="Liger's fused layers (needs a CUDA device and `pip install liger-kernel`).",
    )
    torch_compile: bool = Field(
        False, description="Compile the model: slow to start, faster afterwards."
    )
    activation_memory_budget: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Compiled and not checkpointed, a layer keeps this share of its activations.",
    )

    # The adapter
    lora_r: int = Field(16, ge=1, le=4096, description="Rank of the adapter.")
    lora_alpha: float = Field(
        32.0, gt=0, le=65_536, description="The adapter's output is scaled by alpha / rank."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the adapter.")
    target_modules: str = Field(
        "all-linear",
        pattern=r"^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$",
        description="Layers that get an adapter: names with commas, or `all-linear` (of experts: the attention).",
    )
    use_dora: bool = Field(False, description="Train magnitude and direction apart (DoRA).")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), for high ranks.")
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora", "loftq"] = Field(
        "default", description="How the adapter starts."
    )
    modules_to_save: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*)?$",
        description="Layers trained whole beside the adapter: embed_tokens, lm_head.",
    )
    num_trainable_layers: int = Field(
        2, ge=1, le=1000, description="Last layers that train; the others are frozen."
    )

    # The quantised base
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="Code book of the 4-bit base."
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="Quantise the quantisation constants too."
    )

    # Watching and keeping
    logging_steps: int = Field(
        1, ge=1, le=1_000_000, description="Optimizer steps between two points of the plots."
    )
    eval_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between evaluations; 0 is ten over the run.",
    )
    save_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between checkpoints; 0 is once per epoch.",
    )
    save_total_limit: int = Field(2, ge=1, le=1000, description="Checkpoints kept.")
    stop_when_diverged: bool = Field(
        True,
        description="End the run when the loss is no number or no gradient arrives; the last good checkpoint stays.",
    )
    halve_batch_on_oom: bool = Field(
        True, description="Out of GPU memory: go on with half the batch and twice the accumulation."
    )
    device: int = Field(
        0, ge=0, le=63, description="Which of this machine's GPUs, as nvidia-smi numbers them."
    )
    sample_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between answers to the samples; 0 is before and after.",
    )
    num_samples: int = Field(
        3, ge=0, le=50, description="Questions of the data answered before and after training."
    )
    seed: int = Field(
        42, ge=0, le=2**32 - 1, description="Seed of the data order, the split and the adapter."
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_defaults(cls, fields: Any) -> Any:
        """What a stage and a method bring of their own, under what is given."""
        stage, method = (
            fields.get(name, cls.model_fields[name].default) for name in ("stage", "method")
        )
        is_known = (
            isinstance(stage, str)
            and stage in STAGES
            and isinstance(method, str)
            and method in METHODS
        )
        return {**defaults_of(stage, method), **fields} if is_known else fields

    @field_validator("target_modules", mode="before")
    @classmethod
    def _join_names(cls, value: Any) -> Any:
        """PEFT writes a list; here it is one string, so that a text box and a flag can hold it."""
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @classmethod
    def parse(cls, fields: Mapping[str, object]) -> Self:
        """A job from field values (of a form, of flags, of a file).

        Raises SpecError with every problem at once.
        """
        try:
            job = cls.model_validate(dict(fields))
        except ValidationError as error:
            found = tuple(_problem(item) for item in error.errors())
            raise SpecError(*(found + _choice_problems(fields))) from None
        if found := _choice_problems(fields) or tuple(refusals(job)):
            raise SpecError(*found)
        return job

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A job from the text of a job file. Raises SpecError."""
        try:
            fields = json.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise SpecError(
                Problem("job file", f"not JSON: {error}", "give a JSON object of JobSpec fields")
            ) from None
        if not isinstance(fields, dict):
            raise SpecError(
                Problem(
                    "job file",
                    f"holds a {type(fields).__name__}",
                    "give a JSON object of JobSpec fields",
                )
            )
        return cls.parse(fields)

    def to_json(self) -> str:
        """The text of a job file that `from_json` reads back to an equal job."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def trains_adapter(self) -> bool:
        """True if the base is frozen and a LoRA adapter trains."""
        return METHODS[self.method].trains_adapter

    @property
    def base_bits(self) -> int:
        """Bits per weight of the base's linear layers while training: 16 (as loaded), 8 or 4."""
        return METHODS[self.method].base_bits


def _choice_problems(fields: Mapping[str, object]) -> tuple[Problem, ...]:
    """Problems of the fields whose choices are rows of a table."""
    tables: dict[str, Mapping[str, object]] = {"stage": STAGES, "method": METHODS}
    return tuple(
        Problem(
            name, f"{_shown(fields[name])} is not one of {', '.join(table)}", "choose one of these"
        )
        for name, table in tables.items()
        if name in fields and fields[name] not in tuple(table)
    )


def _problem(error: Any) -> Problem:
    """Pydantic's account of one bad field, in our words. Source of the types: pydantic_core.ErrorType."""
    name = ".".join(map(str, error["loc"])) or "job"
    value, limits = _shown(error["input"]), error.get("ctx", {})
    say = {
        "extra_forbidden": ("unknown field", "see `python app.py train --help` for the fields"),
        "finite_number": (f"{value} is not a finite number", "give a plain number, such as 0.0002"),
        "greater_than": (f"{value} is too small", f"give more than {limits.get('gt')}"),
        "greater_than_equal": (f"{value} is too small", f"give {limits.get('ge')} or more"),
        "less_than": (f"{value} is too large", f"give less than {limits.get('lt')}"),
        "less_than_equal": (f"{value} is too large", f"give {limits.get('le')} or less"),
        "literal_error": (f"{value} is not a choice", f"choose {limits.get('expected')}"),
        "int_parsing": (f"{value} is not a whole number", "give a whole number"),
        "int_type": (f"{value} is not a whole number", "give a whole number"),
        "int_from_float": (f"{value} is not a whole number", "give a whole number"),
        "float_parsing": (f"{value} is not a number", "give a number"),
        "float_type": (f"{value} is not a number", "give a number"),
        "bool_parsing": (f"{value} is not true or false", "give true or false"),
        "bool_type": (f"{value} is not true or false", "give true or false"),
        "string_too_short": ("is empty", "give a value"),
        "string_pattern_mismatch": (
            f"{value} holds characters that cannot stand here",
            "use plain names",
        ),
    }
    if error["input"] is None:
        return Problem(name, "is empty", "give a value")
    return Problem(
        name, *say.get(error["type"], (f"{value}: {error['msg'].lower()}", "correct it"))
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
