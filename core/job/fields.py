"""JobFields: every setting of a job, each with its type, range, default and one sentence.

Field names are those of TRL, Transformers, PEFT and bitsandbytes, so that knowledge carries over.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from core.training.contract.job import (
    AdapterInit,
    Attention,
    Dtype,
    LossType,
    OptimizerName,
    Parallelism,
    Profile,
    QuantType,
    Scheduler,
)
from core.training.contract.methods import METHODS

Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f]*$")]
"""Model, path or revision: no control characters."""
Measure = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]*$")]
"""What is measured: a metric or the name of a suite."""


class JobFields(BaseModel):
    """Settings of a job: flat and frozen. JobSpec adds the checks between them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Model
    model: Name = Field(
        "demo", min_length=1, description="Base model: a preset, a Hub id (owner/name) or a folder."
    )
    revision: Name = Field(
        "main", min_length=1, description="Branch, tag or commit of a Hub model."
    )
    stage: str = Field("sft", description="Training objective.")
    method: str = Field(
        "lora", description="Which weights train, and how the base model is stored."
    )
    gpu: str = Field("local", description="GPU that the job is for: `local` or a GPU preset.")
    dtype: Dtype = Field(
        "auto",
        description="Precision of the loaded weights; auto is bfloat16 where the GPU supports it.",
    )
    adapter: Name = Field(
        "",
        description="Adapter to continue from: output folder of a run; empty for a new one.",
    )
    profile: Profile = Field(
        "custom",
        description="Whether Tailor chooses what only trades memory for speed, or you (custom).",
    )

    # Data
    dataset: Name = Field(
        "demo", min_length=1, description="Training data: a JSONL file, or `demo`."
    )
    eval_dataset: Name = Field(
        "",
        description="Evaluation data: a JSONL file; empty holds out a part of the training data.",
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
        False, description="Join short rows into full-length ones, without attention between rows."
    )
    assistant_only_loss: bool = Field(
        True, description="Learn from the answers only, not from the questions."
    )
    use_chat_template: bool = Field(
        True,
        description="Put prompts and answers that are plain text into the model's chat template, "
        "if it has one.",
    )
    mix: str = Field(
        "",
        max_length=20_000,
        description="More training files with weights, one per line: path = 0.5.",
    )
    max_rows: int = Field(
        0, ge=0, le=10**9, description="Number of rows to use, for a quick test; 0 uses all."
    )
    shuffle: bool = Field(
        True, description="Train in random order; off keeps the order of the file."
    )
    max_lost_answers: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of rows that may lose their whole answer to max_length.",
    )
    dataset_sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="SHA-256 that the training file must have; empty accepts any file.",
    )
    accept_unread: bool = Field(
        False,
        description="Train although the data holds what is not read, such as pictures or a label.",
    )

    # Stage
    beta: float = Field(
        0.1, ge=0, le=100, description="Strength of the pull towards the reference model."
    )
    loss_type: LossType = Field("default", description="Form of the preference loss.")
    precompute_ref_log_probs: bool = Field(
        False,
        description="Run the reference model once before training instead of keeping it loaded.",
    )
    num_generations: int = Field(8, ge=2, le=1024, description="Answers generated for each prompt.")
    max_completion_length: int = Field(
        256, ge=1, le=65_536, description="Longest generated answer, in tokens."
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="Sampling temperature of generated answers."
    )
    reward_functions: str = Field(
        "exact_match",
        pattern=r"^([a-z_]+(,[a-z_]+)*)?$",
        description="Built-in rewards, separated by commas: exact_match, regex, json, length.",
    )
    reward_pattern: str = Field(
        "",
        max_length=1000,
        description="Regular expression that the reward `regex` looks for in an answer.",
    )
    reward_model: Name = Field(
        "", description="Reward model: the folder of a finished run or a Hub id; empty uses none."
    )

    # Batches and steps
    num_train_epochs: float = Field(
        3.0, gt=0, le=10_000, description="Passes over the training data."
    )
    max_steps: int = Field(
        -1,
        ge=-1,
        le=100_000_000,
        description="Number of optimizer steps; -1 uses num_train_epochs.",
    )
    per_device_train_batch_size: int = Field(
        2, ge=1, le=4096, description="Rows in one forward pass on each device."
    )
    gradient_accumulation_steps: int = Field(
        8, ge=1, le=65_536, description="Forward passes per optimizer step."
    )

    # Optimizer
    learning_rate: float = Field(2e-4, gt=0, le=10, description="Peak learning rate.")
    lr_scheduler_type: Scheduler = Field(
        "cosine", description="How the learning rate changes after warm-up."
    )
    warmup_ratio: float = Field(
        0.03, ge=0, le=1, description="Share of the steps in which the learning rate rises."
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Steps in which the learning rate rises; 0 uses warmup_ratio.",
    )
    min_lr_rate: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Lowest share of the learning rate, for polynomial, cosine_with_min_lr and "
        "warmup_stable_decay.",
    )
    lr_power: float = Field(
        2.0, gt=0, le=10, description="Exponent of the schedule polynomial; 1 falls in a line."
    )
    lr_decay_ratio: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of the steps, at the end, in which warmup_stable_decay falls.",
    )
    lr_restart_step: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Step after which warm-up and schedule begin again; 0 never. Set by runs that "
        "continue another.",
    )
    loraplus_lr_ratio: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Learning rate of the adapter's B matrices, as a multiple (LoRA+), such as "
        "16; 0 trains both alike.",
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1e6, description="Gradients are clipped to this norm; 0 turns clipping off."
    )
    optim: OptimizerName = Field(
        "adamw_torch_fused", description="Optimizer and the precision of its states."
    )
    neftune_noise_alpha: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Noise on the embeddings while training (NEFTune), such as 5; 0 adds none.",
    )
    label_smoothing_factor: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the loss that spreads over all words of the vocabulary, such as 0.1.",
    )

    # Memory and speed
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass instead of keeping them."
    )
    checkpoint_every_n_layers: int = Field(
        1,
        ge=1,
        le=1000,
        description="With checkpointing, recompute one layer of this many; 1 recomputes all.",
    )
    activation_offloading: bool = Field(
        False,
        description="Keep activations in main memory until the backward pass (needs a CUDA GPU).",
    )
    attn_implementation: Attention = Field(
        "sdpa",
        description="Attention kernel; for packed rows varlen, with capped scores flex_attention.",
    )
    use_liger_kernel: bool = Field(
        False,
        description="Use Liger's fused layers (needs a CUDA GPU and `pip install liger-kernel`).",
    )
    torch_compile: bool = Field(
        False, description="Compile the model: slower to start, faster afterwards."
    )
    activation_memory_budget: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of activations that a compiled layer keeps if it is not checkpointed.",
    )

    # Adapter
    lora_r: int = Field(16, ge=1, le=4096, description="Rank of the adapter.")
    lora_alpha: float = Field(
        32.0, gt=0, le=65_536, description="The adapter's output is scaled by alpha / rank."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    target_modules: str = Field(
        "all-linear",
        pattern=r"^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$",
        description="Layers that get an adapter, by name; all-linear leaves out experts.",
    )
    use_dora: bool = Field(False, description="Train magnitude and direction separately (DoRA).")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), for high ranks.")
    init_lora_weights: AdapterInit = Field("default", description="How the adapter is initialized.")
    modules_to_save: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*)?$",
        description="Layers to train fully beside the adapter: embed_tokens, lm_head.",
    )
    num_trainable_layers: int = Field(
        2, ge=1, le=1000, description="Number of last layers that train; the others are frozen."
    )

    # Quantized base model
    bnb_4bit_quant_type: QuantType = Field(
        "nf4", description="Number format of the 4-bit base model."
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="Quantize the quantization constants too."
    )

    # Logging, evaluation and checkpoints
    logging_steps: int = Field(
        1, ge=1, le=1_000_000, description="Optimizer steps between two logged points."
    )
    eval_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between evaluations; 0 evaluates ten times in a run.",
    )
    save_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between checkpoints; 0 saves once per epoch.",
    )
    save_total_limit: int = Field(2, ge=1, le=1000, description="Number of checkpoints to keep.")
    keep_best: Measure = Field(
        "off",
        description="Keep the best checkpoint and make it the result: by eval_loss, or by a suite "
        "of check_suites; off uses the last step.",
    )
    early_stopping_patience: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="End the run after this many evaluations (of a suite: checks) without a "
        "better one; 0 never.",
    )
    early_stopping_threshold: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Smallest improvement that counts for early_stopping_patience; of a suite, in "
        "percent of its tests.",
    )
    stop_when_diverged: bool = Field(
        True,
        description="End the run if the loss is not a number or gradients vanish.",
    )
    halve_batch_on_oom: bool = Field(
        True,
        description="If GPU memory runs out, continue with half the batch, twice the accumulation.",
    )
    device: int = Field(
        0,
        ge=0,
        le=63,
        description="GPU of this machine: its place in CUDA_VISIBLE_DEVICES, or in nvidia-smi.",
    )
    num_devices: int = Field(
        1,
        ge=0,
        le=64,
        description="GPUs that train together, from `device` on; 0 takes every one that is "
        "free and alike.",
    )
    parallelism: Parallelism = Field(
        "auto",
        description="ddp: the model on each GPU; fsdp: divided among them; auto: ddp where it "
        "fits.",
    )
    sample_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between sample answers; 0 is only before and after training.",
    )
    num_samples: int = Field(
        3,
        ge=0,
        le=50,
        description="Questions from the data that the model answers before and after training.",
    )
    check_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimizer steps between checks of the model at hand; 0 checks none.",
    )
    check_suites: Name = Field(
        "",
        description="Suites for check_steps: names such as identity, or files, by commas.",
    )
    seed: int = Field(
        42, ge=0, le=2**32 - 1, description="Seed of the data order, the split and the adapter."
    )

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on each device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def trains_adapter(self) -> bool:
        """True if the base is frozen and a LoRA adapter trains."""
        return METHODS[self.method].trains_adapter

    @property
    def base_bits(self) -> int:
        """Bits per weight of the base's linear layers while training: 16 (as loaded), 8 or 4."""
        return METHODS[self.method].base_bits
