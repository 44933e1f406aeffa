"""Program of a job, as Tailor's training program (core/training) runs it with TRL."""

from collections.abc import Iterator
from dataclasses import replace

from core.job import JobSpec, Problem, SpecError
from core.memory.program.optimizers import OPTIMIZERS
from core.memory.program.precision import JobPrecision, is_cpu, precision_of
from core.memory.program.program import AttentionKernel, Generation, Lora, Program
from core.memory.program.quantization import Quantization
from core.memory.program.stages import with_stage
from core.models import Gpu, ModelShape
from core.training.contract.job import (
    CHECK_ANSWER_TOKENS,
    CHECK_BATCH_SIZE,
    CHECK_PROMPT_TOKENS,
    is_sharded,
)
from core.training.contract.methods import METHODS
from core.training.contract.weights.parameters import EXPERT_INITIALIZATIONS

MIB = 2**20
ALL_LINEAR = "all-linear"
HOPPER = (9, 0)
AMPERE = (8, 0)
"""Compute capabilities."""


def program_of(
    job: JobSpec, shape: ModelShape, gpu: Gpu, longest_row_tokens: int | None = None
) -> Program:
    """Return the program that trains this job on this card, with the longest batch it can meet.

    All rows of that batch have max_length tokens, or `longest_row_tokens` if that is less: such a
    batch needs no mask. Packed, each row of the batch becomes max_length tokens of one sequence.

    Raises SpecError for a job that cannot run on this model.
    """
    longest = min(job.max_length, longest_row_tokens or job.max_length)
    program = _sft_program(job, shape, gpu, longest)
    problems = _length_problems(job, shape) + _target_problems(job, program)
    problems += _smoothing_problems(job, shape)
    if problems:
        raise SpecError(*problems)
    return with_stage(program, job)


def _sft_program(job: JobSpec, shape: ModelShape, gpu: Gpu, longest_row_tokens: int) -> Program:
    """Return the program of the job's settings under supervised fine-tuning."""
    batch_size, sequence_length = _batch_shape(job, longest_row_tokens)
    on_cpu = is_cpu(gpu)
    stored = precision_of(job, gpu)
    precision = _as_gathered(job, stored)
    optimizer = OPTIMIZERS[job.optim]
    budget = job.activation_memory_budget if job.torch_compile else 1.0
    num_trained = job.num_trainable_layers if METHODS[job.method].trains_last_layers else None
    return Program(
        shape=shape,
        batch_size=batch_size,
        sequence_length=sequence_length,
        optimizer=replace(optimizer, is_paged=optimizer.is_paged and not on_cpu),
        weight_itemsize=precision.weight_itemsize,
        frozen_itemsize=stored.weight_itemsize,
        lora=_lora(job, shape, precision.adapter_itemsize),
        upcasts_modules_to_save=precision.upcasts_modules_to_save,
        quantization=_quantization(job),
        autocast=precision.autocast,
        is_float16=not gpu.supports_bf16,
        attention=_attention(job, shape, gpu),
        has_mask=job.packing,
        checkpointing=job.gradient_checkpointing,
        checkpoint_every_n_layers=job.checkpoint_every_n_layers,
        activation_memory_budget=budget,
        offloads_activations=job.activation_offloading and not on_cpu,
        compiles_layers=job.torch_compile,
        uses_liger=job.use_liger_kernel and not on_cpu,
        num_trainable_layers=num_trained,
        modules_to_save=_modules_to_save(job),
        adds_noise=job.neftune_noise_alpha > 0,
        checks=_checks(job, shape),
        accumulation_steps=job.gradient_accumulation_steps,
        workspace_bytes=workspace_bytes(gpu),
        on_cpu=on_cpu,
        num_devices=max(1, job.num_devices),
        is_sharded=is_sharded(job.num_devices, job.parallelism),
    )


def _as_gathered(job: JobSpec, stored: JobPrecision) -> JobPrecision:
    """Return the precision in which weights compute: divided ones are gathered in 16 bits, however
    wide they are stored (MixedPrecisionPolicy of torch.distributed.fsdp)."""
    if is_sharded(job.num_devices, job.parallelism) and stored.autocast:
        return replace(stored, weight_itemsize=2, adapter_itemsize=2)
    return stored


def _batch_shape(job: JobSpec, longest_row_tokens: int) -> tuple[int, int]:
    """Return (rows, tokens of the longest row) of a batch. A packed batch is one long row."""
    if job.packing:
        return 1, job.per_device_train_batch_size * job.max_length
    return job.per_device_train_batch_size, longest_row_tokens


def workspace_bytes(gpu: Gpu) -> int:
    """Return the size of one thread's cuBLAS workspace: 8.125 MiB, 32 MiB from Hopper on.

    Source: getChosenWorkspaceSize in ATen's CublasHandlePool.cpp. None on a CPU.
    """
    if is_cpu(gpu):
        return 0
    if gpu.compute_capability >= HOPPER:
        return 32 * MIB
    return 8 * MIB + MIB // 8


def _lora(job: JobSpec, shape: ModelShape, itemsize: int) -> Lora | None:
    if not job.trains_adapter:
        return None
    names = frozenset(job.target_modules.split(","))
    experts = shape.expert_targets(names)
    targets = None if job.target_modules == ALL_LINEAR else names - experts.known
    return Lora(
        job.lora_r,
        itemsize,
        targets,
        job.lora_dropout,
        job.use_dora,
        # The training program skips PEFT's cast of the input under autocast; DoRA depends on it.
        casts_input=job.use_dora,
        experts=tuple((name, job.lora_r * times) for name, times in experts.ranks.items()),
    )


def _quantization(job: JobSpec) -> Quantization | None:
    if job.base_bits == 4:
        return Quantization(4, job.bnb_4bit_use_double_quant)
    if job.base_bits == 8:
        return Quantization(8)
    return None


def _modules_to_save(job: JobSpec) -> frozenset[str]:
    if not job.trains_adapter:
        return frozenset()
    return frozenset(name for name in job.modules_to_save.split(",") if name)


def _checks(job: JobSpec, shape: ModelShape) -> Generation | None:
    """Return the largest batch of tests that the model answers every few steps."""
    if not job.check_steps:
        return None
    prompt_tokens = min(CHECK_PROMPT_TOKENS, shape.max_position_embeddings - CHECK_ANSWER_TOKENS)
    return Generation(
        CHECK_BATCH_SIZE,
        max(1, prompt_tokens),
        CHECK_ANSWER_TOKENS,
        phase="eval",
        samples=False,
        keeps_weight_casts=True,
    )


def _attention(job: JobSpec, shape: ModelShape, gpu: Gpu) -> AttentionKernel:
    """Return the kernel that transformers and PyTorch choose.

    PyTorch's SDPA supports neither soft caps nor sinks, and has no FlashAttention before Ampere.
    FlexAttention saves what FlashAttention saves, and needs less in its backward pass
    (torch/_inductor/kernel/flex).
    """
    if job.attn_implementation == "flex_attention":
        return "flash"
    if job.attn_implementation == "eager" or shape.attn_logit_softcapping or shape.family.has_sinks:
        return "eager"
    reads_packed_rows_apart = job.attn_implementation == "varlen" and job.packing
    if job.attn_implementation == "flash_attention_2" or reads_packed_rows_apart:
        return "flash"
    if is_cpu(gpu) or gpu.compute_capability >= AMPERE:
        return "sdpa"
    return "efficient"


def _length_problems(job: JobSpec, shape: ModelShape) -> tuple[Problem, ...]:
    positions = shape.max_position_embeddings
    if job.max_length <= positions:
        return ()
    problem = f"{job.max_length} is beyond the model's {positions} positions"
    return (Problem("max_length", problem, f"give {positions} or less"),)


def _smoothing_problems(job: JobSpec, shape: ModelShape) -> tuple[Problem, ...]:
    if not (job.label_smoothing_factor and shape.final_logit_softcapping):
        return ()
    problem = "this model caps its logits, so they cannot be smoothed"
    return (Problem("label_smoothing_factor", problem, "give 0, or choose another model"),)


def _target_problems(job: JobSpec, program: Program) -> tuple[Problem, ...]:
    if not job.trains_adapter or job.target_modules == ALL_LINEAR:
        return ()
    names = program.linears
    asked = job.target_modules.split(",")
    experts = program.shape.expert_targets(frozenset(asked))
    unknown = [name for name in asked if name not in names and name not in experts.known]
    if unknown:
        problem = f"the model has no linear layer {' or '.join(unknown)}"
        fix = f"choose from {', '.join(names)}, or {ALL_LINEAR}"
        return (Problem("target_modules", problem, fix),)
    return tuple(_expert_problems(job, program.shape))


def _expert_problems(job: JobSpec, shape: ModelShape) -> Iterator[Problem]:
    """Yield what PEFT cannot train on the experts of a mixture."""
    experts = shape.expert_targets(frozenset(job.target_modules.split(",")))
    if experts.half:
        given, missing = experts.half
        problem = f"{given} and {missing} of an expert are in one tensor, and only {given} is named"
        yield Problem("target_modules", problem, f"add {missing}, or remove {given}")
    if not experts.ranks:
        return
    for name, is_on, fix in (
        ("lora_dropout", job.lora_dropout > 0, "0"),
        ("use_dora", job.use_dora, "no"),
        ("init_lora_weights", job.init_lora_weights not in EXPERT_INITIALIZATIONS, "default"),
    ):
        if is_on:
            problem = "an adapter on experts, as target_modules asks for, has none"
            yield Problem(name, problem, f"choose {fix}, or leave the experts out")
