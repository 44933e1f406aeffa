"""What our training program does for a job: TRL's SFTTrainer as core/training sets it up. Refuses impossible jobs."""

from dataclasses import replace

from core.job import JobSpec, Problem, SpecError
from core.memory.program.optimizers import OPTIMIZERS
from core.memory.program.precision import is_cpu, precision_of
from core.memory.program.program import Attention, Lora, Program
from core.memory.program.quantization import Quantization
from core.memory.program.stages import with_stage
from core.models import Gpu, ModelShape
from core.training.contract.methods import METHODS

MIB = 2**20
ALL_LINEAR = "all-linear"


def program_of(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    longest_row_tokens: int | None = None,
    reward_shape: ModelShape | None = None,
) -> Program:
    """The program that trains this job on this card, with the longest batch that it can meet.

    That is a batch of rows of max_length tokens (or of `longest_row_tokens`, if that is less), whose padding at the end
    needs no mask; packed, one row of max_length tokens for each row of the batch.

    Raises SpecError for a job that cannot run on this model.
    """
    if problems := _length_problems(job, shape) + _target_problems(job, shape):
        raise SpecError(*problems)
    precision = precision_of(job, gpu)
    rows = job.per_device_train_batch_size
    row_tokens = min(job.max_length, longest_row_tokens or job.max_length)
    if job.packing:
        rows, row_tokens = 1, rows * job.max_length
    program = Program(
        shape=shape,
        rows=rows,
        row_tokens=row_tokens,
        optimizer=replace(
            OPTIMIZERS[job.optim], is_paged=OPTIMIZERS[job.optim].is_paged and not is_cpu(gpu)
        ),
        weight_bytes=precision.weight_bytes,
        lora=_lora(job, precision.adapter_bytes),
        widens_copies=precision.widens_copies,
        quantization=_quantization(job),
        autocast=precision.autocast,
        is_float16=not gpu.supports_bf16,
        attention=_attention(job, shape, gpu),
        has_mask=job.packing,
        checkpointing=job.gradient_checkpointing,
        checkpoint_every=job.checkpoint_every_n_layers,
        kept_share=job.activation_memory_budget if job.torch_compile else 1.0,
        offloads_activations=job.activation_offloading and not is_cpu(gpu),
        compiles_layers=job.torch_compile,
        uses_liger=job.use_liger_kernel and not is_cpu(gpu),
        trained_layers=job.num_trainable_layers if METHODS[job.method].trains_last_layers else None,
        saved_modules=frozenset(filter(None, job.modules_to_save.split(",")))
        if job.trains_adapter
        else frozenset(),
        accumulation_steps=job.gradient_accumulation_steps,
        workspace_bytes=workspace_bytes(gpu),
        on_cpu=is_cpu(gpu),
    )
    return with_stage(program, job, reward_shape)


def workspace_bytes(gpu: Gpu) -> int:
    """cuBLAS workspace of one thread: 8.125 MiB, from Hopper on 32 MiB (getChosenWorkspaceSize in ATen's
    CublasHandlePool.cpp); none on a CPU."""
    if is_cpu(gpu):
        return 0
    return 32 * MIB if gpu.compute_capability >= (9, 0) else 8 * MIB + MIB // 8


def _lora(job: JobSpec, number_bytes: int) -> Lora | None:
    if not job.trains_adapter:
        return None
    targets = None if job.target_modules == ALL_LINEAR else frozenset(job.target_modules.split(","))
    return Lora(
        job.lora_r, number_bytes, targets, job.lora_dropout, job.use_dora, widens_input=job.use_dora
    )


def _quantization(job: JobSpec) -> Quantization | None:
    if job.base_bits == 4:
        return Quantization(4, job.bnb_4bit_use_double_quant)
    return Quantization(8) if job.base_bits == 8 else None


def _attention(job: JobSpec, shape: ModelShape, gpu: Gpu) -> Attention:
    """The kernel that transformers and PyTorch choose.

    PyTorch's SDPA knows neither soft caps nor sinks; before Ampere it has no FlashAttention. FlexAttention keeps what
    that does, and needs less in its backward pass (torch/_inductor/kernel/flex).
    """
    if job.attn_implementation == "flex_attention":
        return "flash"
    if job.attn_implementation == "eager" or shape.attn_logit_softcapping or shape.family.has_sinks:
        return "eager"
    if job.attn_implementation == "flash_attention_2" or (
        job.attn_implementation == "varlen" and job.packing
    ):
        return "flash"
    return "sdpa" if is_cpu(gpu) or gpu.compute_capability >= (8, 0) else "efficient"


def _length_problems(job: JobSpec, shape: ModelShape) -> tuple[Problem, ...]:
    positions = shape.max_position_embeddings
    if job.max_length <= positions:
        return ()
    return (
        Problem(
            "max_length",
            f"{job.max_length} is beyond the model's {positions} positions",
            f"give {positions} or less",
        ),
    )


def _target_problems(job: JobSpec, shape: ModelShape) -> tuple[Problem, ...]:
    if not job.trains_adapter or job.target_modules == ALL_LINEAR:
        return ()
    layers = {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}.values()
    names = tuple(
        dict.fromkeys(
            t.module for layer in layers for t in shape.layer_tensors(layer) if t.is_linear
        )
    )
    unknown = [name for name in job.target_modules.split(",") if name not in names]
    if not unknown:
        return ()
    problem = f"the model has no linear layer {' or '.join(unknown)}"
    return (Problem("target_modules", problem, f"choose from {', '.join(names)}, or {ALL_LINEAR}"),)
