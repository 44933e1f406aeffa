"""How fast a job trains and what it costs, before it starts: a roofline of matrix math, memory traffic and the host.

Forecasts, with a wide band, the steps alone: not loading, evaluating, saving or compiling. Never measures.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType
from typing import Literal

from core.job import JobSpec, Optimizer
from core.presets import Gpu
from core.shapes import ModelShape, Tensor

Bound = Literal["matrix math", "memory traffic", "the processor feeding the GPU"]

BAND = 0.25
"""How far off a forecast may be, as a share: the published rates in tests/test_speed.py all lie within it."""

# The card

MATMUL_SHARES: Mapping[tuple[int, int], float] = MappingProxyType(
    {
        (7, 5): 0.75,
        (8, 0): 271 / 312,
        (8, 6): 1.0,
        (8, 9): 1.0,
        (9, 0): 794 / 989,
        (10, 0): 1745 / 2250,
    }
)
"""Compute capability -> share of the rated FLOP/s that the best matrix product reaches.

A100, H100, B200: maximum achievable matmul FLOP/s, stas00/ml-engineering. RTX 3090 and 4090 exceed their rated clock:
whole LoRA trainings reach 0.8 (axolotl #3734) and 0.7 of it (torchtune). T4: set so that one reaches about 0.4.
"""
MATMUL_SHARE = 0.85
"""The same for a capability that nobody measured: the middle of the others."""
COMPILED_SHARE, EAGER_SHARE = 0.80, 0.70
"""Share of the best rate that the products of a model reach, as they come and with the gaps between kernels. From
published rates: torchtune, 3B on an A100, and NeMo AutoModel, 8B on an H100 (tests/test_speed.py)."""


@dataclass(frozen=True)
class AttentionKernel:
    """How a kernel computes attention."""

    share: float
    """Of the best matmul rate."""
    skips_masked: bool
    """Leaves out the scores that causality masks: half of them, or all beyond a window."""
    forward_bytes_per_score: int = 0
    backward_bytes_per_score: int = 0


FLASH = AttentionKernel(share=0.35, skips_masked=True)
"""FlashAttention 2: forward 309 to 370 of an H100's 794 TFLOP/s (a figure in the FlashAttention 3 paper), less back."""
EFFICIENT = AttentionKernel(share=0.25, skips_masked=True)
"""The memory-efficient kernel that stands in for it: about two thirds as fast. Assumed, not measured in training."""
MASKED = AttentionKernel(share=0.25, skips_masked=False)
"""The same with a mask, which it reads for every score."""
EAGER = AttentionKernel(0.35, skips_masked=False, forward_bytes_per_score=24, backward_bytes_per_score=46)
"""Scores in memory: written, scaled, masked, softmax in float32, cast and read; and back. Counted in
eager_attention_forward (transformers) and the softmax backward kernel (ATen)."""

# Traffic

LAYER_BYTES = 15e6 / (32 * 4096)
"""Bytes that the element-wise operations of a layer move per token and unit of hidden size, forward and backward, when
compiled: 15 MB per token in Llama-3.1-8B (32 layers of 4096)."""
LIGER_FACTOR, EAGER_FACTOR = 1.5, 2.5
"""How much more that is with Liger's kernels and with PyTorch's own, which write every intermediate result."""
ADAPTER_BYTES = 14e6 / (32 * 4096)
"""The same unit for PEFT's adapters beside the linear layers: input casts, and products added up."""
LOGIT_BYTES = 12
"""Per logit of the fused head: its 16-bit tile written and read; again in the backward pass, changed and read."""
DORA_BYTES = 20
"""Per weight and forward pass: reads it, writes and reads its product and their sum, in float32, for the norm."""
RECOMPUTE_SHARE = 0.4
"""Checkpointing runs the forward pass again: this much more element-wise traffic and host time."""

# The processor

HOST_SECONDS_PER_LAYER = 0.15 / 32
"""To launch the kernels of a micro-batch, forward and backward: litgpt, Llama-2-7B LoRA, 0.142 s with 32 layers."""
HOST_COMPILED, HOST_FULL, HOST_QUANTISED = 0.35, 0.65, 1.5
"""Factors of the host time: fused kernels; no adapters to launch; weights to unpack (litgpt: 3.68 against 2.36 min)."""

# The rows

LENGTH_SPREAD = 0.5
"""Standard deviation of row lengths over their mean: pads a batch of 8 to 1.86 times its tokens, as much as Unsloth
measured on chats (#3672: 96 s padded, 52 s without padding)."""


@dataclass(frozen=True)
class OptimizerTraffic:
    """What an optimizer moves per number that trains."""

    accesses: int
    """Reads and writes of a number as wide as the parameter: itself, its gradient, states of that width."""
    state_bytes: int = 0
    """Bytes of other states, read and written."""


OPTIMIZER_TRAFFIC: Mapping[Optimizer, OptimizerTraffic] = MappingProxyType(
    {
        "adamw_torch_fused": OptimizerTraffic(7),
        "adamw_torch": OptimizerTraffic(18),  # one pass over memory per operation (_multi_tensor_adam)
        "adamw_8bit": OptimizerTraffic(3, state_bytes=4),
        "paged_adamw_8bit": OptimizerTraffic(3, state_bytes=4),
        "paged_adamw_32bit": OptimizerTraffic(3, state_bytes=16),
        "lion_8bit": OptimizerTraffic(3, state_bytes=2),
        "adafactor": OptimizerTraffic(3, state_bytes=56),  # seven float32 temporaries, written and read
        "sgd": OptimizerTraffic(3),
    }
)
CLIP_ACCESSES = 3
"""Gradients read for their norm, then read and written to scale them."""


@dataclass(frozen=True)
class RowStatistics:
    """What a forecast needs to know of the data."""

    num_rows: int
    """Of the training file, with those that are held out for evaluation."""
    mean_tokens: float | None = None
    """None: unknown, and every row counts as max_length tokens."""
    p95_tokens: int | None = None
    """95 % of the rows are at most as long; None: unknown."""


@dataclass(frozen=True)
class Speed:
    """The forecast for one job on one card."""

    tokens_per_second: float
    """Tokens of the data, padding not counted."""
    seconds_per_step: float
    """Of one optimizer step."""
    num_steps: int | None
    """Optimizer steps of the whole job; None if the number of rows is unknown."""
    hours: float | None
    usd: float | None
    """None if the price or the number of rows is unknown."""
    bound_by: Bound
    """What takes most of a step."""
    low_factor: float = 1 - BAND
    high_factor: float = 1 + BAND
    """The true rate should lie between these times the forecast."""

    def to_json(self) -> dict[str, float | None]:
        """The object `speed` that `estimate --json` prints."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "seconds_per_step": self.seconds_per_step,
            "hours": self.hours,
            "usd": self.usd,
        }


@dataclass(frozen=True)
class MicroBatch:
    """The tokens of one forward pass."""

    num_tokens: float
    """With padding."""
    num_data_tokens: float
    """Without."""
    attended_tokens: float
    """Tokens of the row that a token stands in, as the attention kernel sees it."""


@dataclass(frozen=True)
class Work:
    """What one micro-batch asks of the card."""

    matrix_seconds: float
    traffic_seconds: float

    @property
    def total_seconds(self) -> float:
        """One after the other: a kernel that does both at once is the exception."""
        return self.matrix_seconds + self.traffic_seconds


def predict_speed(job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None) -> Speed | None:
    """How fast this job trains on this card; None for a CPU and for a card whose rates are unknown.

    Every row counts as max_length tokens if `rows` does not tell their mean.
    """
    if gpu.compute_capability == (0, 0) or not gpu.flops or not gpu.memory_bandwidth_bytes_per_second:
        return None
    batch = _micro_batch(job, rows)
    work, host_seconds = _work(job, shape, gpu, batch), _host_seconds(job, shape)
    update_seconds = _update_bytes(job, shape, gpu) / gpu.memory_bandwidth_bytes_per_second
    micro_seconds = max(work.total_seconds, host_seconds) + update_seconds / job.gradient_accumulation_steps
    step_seconds = job.gradient_accumulation_steps * micro_seconds
    num_steps = _count_steps(job, rows)
    hours = num_steps * step_seconds / 3600 if num_steps is not None else None
    return Speed(
        tokens_per_second=job.gradient_accumulation_steps * batch.num_data_tokens / step_seconds,
        seconds_per_step=step_seconds,
        num_steps=num_steps,
        hours=hours,
        usd=hours * gpu.usd_per_hour if hours is not None and gpu.usd_per_hour is not None else None,
        bound_by=_bound(work, host_seconds, micro_seconds),
    )


def _micro_batch(job: JobSpec, rows: RowStatistics | None) -> MicroBatch:
    """The tokens of a usual micro-batch. Packed, one row holds them all, and only FlashAttention 2 sees its documents.

    Not packed, rows are padded to the longest of the batch: about mean x (1 + spread x (1/2 + ... + 1/n)), which is
    exact for exponentially distributed lengths with a spread of 1.
    """
    num_rows, longest = job.per_device_train_batch_size, float(job.max_length)
    mean = min(rows.mean_tokens, longest) if rows and rows.mean_tokens else longest
    if job.packing:
        tokens = num_rows * longest
        return MicroBatch(tokens, tokens, mean if job.attn_implementation == "flash_attention_2" else tokens)
    padded = min(longest, mean * (1 + LENGTH_SPREAD * sum(1 / n for n in range(2, num_rows + 1))))
    return MicroBatch(num_rows * padded, num_rows * mean, padded)


def _work(job: JobSpec, shape: ModelShape, gpu: Gpu, batch: MicroBatch) -> Work:
    """Seconds of matrix math and of memory traffic in one micro-batch."""
    best_flops = gpu.flops * MATMUL_SHARES.get(gpu.compute_capability, MATMUL_SHARE)
    kernel = _attention_kernel(job, shape, gpu)
    share = COMPILED_SHARE if job.torch_compile else EAGER_SHARE
    products = batch.num_tokens * _matmul_flops_per_token(job, shape) / share
    attention = batch.num_tokens * _attention_flops_per_token(job, shape, kernel, batch.attended_tokens) / kernel.share
    moved_bytes = batch.num_tokens * _traffic_bytes_per_token(job, shape, kernel, batch.attended_tokens)
    moved_bytes += _linear_parameters(shape) * _bytes_per_weight(job, gpu)
    return Work((products + attention) / best_flops, moved_bytes / gpu.memory_bandwidth_bytes_per_second)


def _matmul_flops_per_token(job: JobSpec, shape: ModelShape) -> float:
    """Forward, gradient of the input, gradient of the weight if it trains; layers again if checkpointed, and the head
    always, whose tiles TRL computes again. Two operations per weight and pass."""
    trains_base, recomputes = not job.trains_adapter, job.gradient_checkpointing
    layers = _active_parameters(shape) * (2 + trains_base + recomputes)
    head = shape.hidden_size * shape.vocab_size * (3 + trains_base)
    return 2 * (layers + head + _adapter_parameters(job, shape) * (3 + recomputes))


def _attention_flops_per_token(job: JobSpec, shape: ModelShape, kernel: AttentionKernel, row_tokens: float) -> float:
    """Two products forward, two and a half times as much backward, forward again if checkpointed."""
    width = shape.num_attention_heads * shape.head_dim
    keys = sum(
        count * _keys_per_token(kernel, row_tokens, shape.sliding_window if layer_type == "sliding_attention" else None)
        for layer_type, count in Counter(shape.layer_types).items()
    )
    return 4 * width * keys * (3.5 + job.gradient_checkpointing)


def _keys_per_token(kernel: AttentionKernel, row_tokens: float, window: int | None) -> float:
    """Keys that a token meets, on average over its row."""
    if not kernel.skips_masked:
        return row_tokens
    if window is None or window >= row_tokens:
        return row_tokens / 2
    return window * (1 - window / (2 * row_tokens))


def _traffic_bytes_per_token(job: JobSpec, shape: ModelShape, kernel: AttentionKernel, row_tokens: float) -> float:
    """Bytes that everything but matrix products moves, per token."""
    recompute = RECOMPUTE_SHARE if job.gradient_checkpointing else 0
    eager = LIGER_FACTOR if job.use_liger_kernel else EAGER_FACTOR
    per_width = LAYER_BYTES * (1 if job.torch_compile else eager)
    if job.trains_adapter and not job.torch_compile:
        per_width += ADAPTER_BYTES
    layers = per_width * shape.num_hidden_layers * shape.hidden_size * (1 + recompute)
    per_score = kernel.forward_bytes_per_score * (1 + job.gradient_checkpointing) + kernel.backward_bytes_per_score
    scores = row_tokens * shape.num_attention_heads * shape.num_hidden_layers * per_score
    return layers + scores + LOGIT_BYTES * shape.vocab_size


def _bytes_per_weight(job: JobSpec, gpu: Gpu) -> float:
    """Bytes moved per linear weight and micro-batch to have it in 16 bits for each product, and for DoRA's norms."""
    stored = _stored_bytes(job, gpu)
    converted = stored + 2 if stored != 2 else 0
    forward_passes = 1 + job.gradient_checkpointing
    norms = DORA_BYTES * forward_passes if job.trains_adapter and job.use_dora else 0
    return converted * (forward_passes + 1) + norms


def _stored_bytes(job: JobSpec, gpu: Gpu) -> float:
    """Bytes of a linear weight of the base. In full, weights are float32 where there is no bfloat16."""
    if job.base_bits < 16:
        return job.base_bits / 8
    is_wide = job.dtype == "float32" or (job.dtype == "auto" and not job.trains_adapter and not gpu.supports_bf16)
    return 4 if is_wide else 2


def _attention_kernel(job: JobSpec, shape: ModelShape, gpu: Gpu) -> AttentionKernel:
    """The kernel that transformers and PyTorch choose: more than one row means padding, and padding a mask."""
    if job.attn_implementation == "flash_attention_2":
        return FLASH
    if job.attn_implementation == "eager" or shape.attn_logit_softcapping or shape.family.has_sinks:
        return EAGER
    if job.packing or job.per_device_train_batch_size > 1:
        return MASKED
    return FLASH if gpu.compute_capability >= (8, 0) else EFFICIENT


def _host_seconds(job: JobSpec, shape: ModelShape) -> float:
    """Seconds in which the processor launches the kernels of one micro-batch."""
    factors = (
        (HOST_COMPILED, job.torch_compile),
        (HOST_FULL, not job.trains_adapter),
        (HOST_QUANTISED, job.base_bits < 16),
        (1 + RECOMPUTE_SHARE, job.gradient_checkpointing),
    )
    return shape.num_hidden_layers * HOST_SECONDS_PER_LAYER * prod(factor for factor, applies in factors if applies)


def _update_bytes(job: JobSpec, shape: ModelShape, gpu: Gpu) -> float:
    """Bytes that clipping and the optimizer move, once per step. Adapters count as float32."""
    traffic = OPTIMIZER_TRAFFIC[job.optim]
    accesses = traffic.accesses + (CLIP_ACCESSES if job.max_grad_norm else 0)
    if job.trains_adapter:
        return _adapter_parameters(job, shape) * (accesses * 4 + traffic.state_bytes)
    return shape.num_parameters * (accesses * _stored_bytes(job, gpu) + traffic.state_bytes)


def _count_steps(job: JobSpec, rows: RowStatistics | None) -> int | None:
    """Optimizer steps of the whole job; None if neither `max_steps` nor `rows` tells."""
    if job.max_steps > 0:
        return job.max_steps
    if rows is None:
        return None
    held_out = 0 if job.eval_dataset else round(job.eval_fraction * rows.num_rows)
    num_rows = float(rows.num_rows - held_out)
    if job.packing and rows.mean_tokens:
        num_rows *= min(1.0, rows.mean_tokens / job.max_length)
    steps_per_epoch = ceil(ceil(num_rows / job.per_device_train_batch_size) / job.gradient_accumulation_steps)
    return ceil(job.num_train_epochs * steps_per_epoch)


def _linear_parameters(shape: ModelShape) -> int:
    """Weights of the linear layers: what can be quantised, and gets an adapter."""
    return sum(count * tensor.num_elements for tensor, count in _layer_tensors(shape) if tensor.is_linear)


def _active_parameters(shape: ModelShape) -> float:
    """Weights of the layers that a token meets: of a mixture of experts, the experts that it is sent to."""
    shares = {"linear": 1.0, "router": 1.0, "expert": shape.num_experts_per_tok / max(1, shape.num_experts)}
    return sum(count * tensor.num_elements * shares.get(tensor.kind, 0.0) for tensor, count in _layer_tensors(shape))


def _adapter_parameters(job: JobSpec, shape: ModelShape) -> int:
    """Numbers of the adapter: rank x (inputs + outputs) of each targeted layer."""
    if not job.trains_adapter:
        return 0
    targets = None if job.target_modules == "all-linear" else set(job.target_modules.split(","))
    return job.lora_r * sum(
        count * sum(tensor.shape)
        for tensor, count in _layer_tensors(shape)
        if tensor.is_linear and (targets is None or tensor.module in targets)
    )


def _layer_tensors(shape: ModelShape) -> tuple[tuple[Tensor, int], ...]:
    """The tensors of each kind of layer, with the number of such layers."""
    kinds = Counter(shape.has_experts(layer) for layer in range(shape.num_hidden_layers))
    example = {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}
    return tuple((tensor, count) for kind, count in kinds.items() for tensor in shape.layer_tensors(example[kind]))


def _bound(work: Work, host_seconds: float, micro_seconds: float) -> Bound:
    """What takes most: what is neither matrix math nor waiting for the host is traffic, the optimizer's included."""
    if host_seconds > work.total_seconds:
        return "the processor feeding the GPU"
    return "matrix math" if work.matrix_seconds >= micro_seconds / 2 else "memory traffic"
