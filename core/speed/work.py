"""Work of one micro-batch for the card and for the processor. One formula per function."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import MappingProxyType

from core.job import JobSpec
from core.models import Gpu, ModelShape, Parameter
from core.speed.kernels import (
    COMPILED_SHARE,
    EAGER_SHARE,
    AttentionKernel,
    attention_kernel,
    matmul_flops,
)
from core.speed.passes import Passes
from core.speed.rows import MicroBatch
from core.training.contract.job import OptimizerName
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES

BACKWARD_ATTENTION = 2.5
"""Matrix products of attention, backward / forward: five for two, as scores are not kept."""

# Memory traffic

LAYER_BYTES = 15e6 / (32 * 4096)
"""Bytes that a compiled layer's element-wise operations move per token and unit of hidden size,
forward and backward: 15 MB per token in Llama-3.1-8B (32 layers of 4096)."""
LIGER_FACTOR = 1.5
EAGER_FACTOR = 2.5
"""Factors of LAYER_BYTES: Liger's kernels; PyTorch's, which write each intermediate result."""
ADAPTER_BYTES = 14e6 / (32 * 4096)
"""PEFT's adapters beside the linear layers, in the same unit: casts and sums."""
ADAPTER_SHARE_WITHOUT_CAST = 3.8 / 7.3
"""Share of ADAPTER_BYTES left without input casts, which only DoRA needs: 3.8 of 7.3 us per token
in the forward pass of Llama-3.1-8B on an H100."""
DORA_BYTES = 20
"""Per weight and forward pass, for the norm: the weight, its product and their sum in float32."""
FORWARD_SHARE = 0.4
"""Share of the forward pass in the element-wise traffic and in the host time."""
KEPT_TENSORS = 25
"""Activations that a layer with adapters keeps, in units of its 16-bit input: 206 kB per token in
Llama-3.1-8B, counted with saved-tensor hooks."""
BUS_BYTES_PER_SECOND = 25e9
"""Main memory over PCI Express 4.0 with 16 lanes, of 32 GB/s nominal."""


@dataclass(frozen=True)
class HeadWork:
    """Work of the last layer under one kind of loss."""

    backward_matmuls: int
    """For the input's gradient, and once forward again where logits are not kept."""
    bytes_per_logit: int
    """0 if the layer does not score the vocabulary."""


HEADS: Mapping[str, HeadWork] = MappingProxyType(
    {
        # A 16-bit tile is written and read; in the backward pass written again, changed and read.
        "fused": HeadWork(2, 12),
        # All logits and their log-softmax are written and read, and so are the gradients of both.
        "logits": HeadWork(1, 20),
        "score": HeadWork(0, 0),
    }
)

# Host

HOST_SECONDS_PER_LAYER = 0.15 / 32
"""To launch a micro-batch, forward and backward: 0.142 s with litgpt, Llama-2-7B LoRA."""
HOST_COMPILED = 0.35
HOST_FULL = 0.65
HOST_QUANTISED = 1.5
"""Factors of that time: with fused kernels; without adapters; with weights to unpack (litgpt
measured 3.68 against 2.36 minutes)."""


@dataclass(frozen=True)
class OptimizerTraffic:
    """Memory traffic of an optimizer for each trained number."""

    accesses: int
    """Reads and writes in the parameter's own width: the parameter, its gradient, its states."""
    state_bytes: int = 0
    """Bytes of states of another width, read and written."""


OPTIMIZER_TRAFFIC: Mapping[OptimizerName, OptimizerTraffic] = MappingProxyType(
    {
        "adamw_torch_fused": OptimizerTraffic(7),
        # One pass over memory per operation (_multi_tensor_adam).
        "adamw_torch": OptimizerTraffic(18),
        "adamw_8bit": OptimizerTraffic(3, state_bytes=4),
        "paged_adamw_8bit": OptimizerTraffic(3, state_bytes=4),
        "paged_adamw_32bit": OptimizerTraffic(3, state_bytes=16),
        "lion_8bit": OptimizerTraffic(3, state_bytes=2),
        # Seven float32 temporaries, written and read.
        "adafactor": OptimizerTraffic(3, state_bytes=56),
        "sgd": OptimizerTraffic(3),
    }
)
DEFAULT_TRAFFIC = OptimizerTraffic(18)
"""Used for optimizers that are not in the table: as much as an AdamW that is not fused."""
CLIP_ACCESSES = 3
"""Gradients are read for their norm, then read and written to scale them."""


def gpu_seconds(
    job: JobSpec, shape: ModelShape, gpu: Gpu, batch: MicroBatch, passes: Passes
) -> float:
    """Return the card's seconds for these passes of one micro-batch.

    Matrix math, memory traffic and the bus add up, because they rarely overlap.
    """
    kernel = attention_kernel(job, shape, gpu)
    matmul_share = COMPILED_SHARE if job.torch_compile else EAGER_SHARE
    flops = _matmul_flops_per_token(job, shape, passes) / matmul_share
    attention_passes = (
        passes.forward + passes.recompute + BACKWARD_ATTENTION * passes.input_gradient
    )
    attention = attention_flops_per_pass(shape, kernel, batch.attended_tokens)
    flops += attention_passes * attention / kernel.share
    layer_bytes = _layer_bytes_per_token(job, shape, passes)
    score_bytes = _score_bytes_per_token(shape, passes, kernel, batch.attended_tokens)
    logit_bytes = HEADS[STAGES[job.stage].head].bytes_per_logit * shape.vocab_size
    moved_bytes = batch.num_tokens * (layer_bytes + score_bytes + logit_bytes)
    moved_bytes += linear_parameters(shape) * _bytes_per_weight(job, gpu, passes)
    copies = _numbers_of_changed_experts(job, shape) * (
        passes.forward + passes.recompute + 2 * passes.input_gradient
    )
    moved_bytes += 3 * 2 * copies  # 16-bit numbers: two are read, one is written
    flops += 2 * job.lora_r * copies / max(batch.num_tokens, 1)
    return (
        batch.num_tokens * flops / matmul_flops(gpu)
        + moved_bytes / gpu.memory_bandwidth_bytes_per_second
        + _offloaded_bytes(job, shape, batch, passes) / BUS_BYTES_PER_SECOND
    )


def _matmul_flops_per_token(job: JobSpec, shape: ModelShape, passes: Passes) -> float:
    """Return the FLOPs of the linear layers, adapters and head.

    Two per weight for each forward pass and for the gradient of the input, two more for the
    gradient of a weight that trains.
    """
    counts = passes.forward + passes.recompute + passes.input_gradient
    layers = active_parameters(shape) * (counts + passes.weight_gradient)
    linear = adapter_parameters(job, shape) - expert_adapter_parameters(job, shape)
    adapters = linear * (counts + 1)
    head_counts = passes.forward
    if passes.input_gradient:
        trains_head = not job.trains_adapter
        head_counts += HEADS[STAGES[job.stage].head].backward_matmuls + trains_head
    return 2 * (layers + adapters + head_parameters(job, shape) * head_counts)


def attention_flops_per_pass(
    shape: ModelShape, kernel: AttentionKernel, row_tokens: float
) -> float:
    """Return attention's FLOPs per token and forward pass: two matrix products."""
    width = shape.num_attention_heads * shape.head_dim
    num_keys = 0.0
    for layer_type, num_layers in _layer_type_counts(shape):
        window = shape.sliding_window if layer_type == "sliding_attention" else None
        num_keys += num_layers * _keys_per_token(kernel, row_tokens, window)
    return 4 * width * num_keys


def _keys_per_token(kernel: AttentionKernel, row_tokens: float, window: int | None) -> float:
    """Return the keys that a token meets, averaged over its row."""
    if not kernel.skips_masked:
        return row_tokens
    if window is None or window >= row_tokens:
        return row_tokens / 2
    return window * (1 - window / (2 * row_tokens))


def host_seconds(job: JobSpec, shape: ModelShape, passes: Passes) -> float:
    """Return the processor's seconds to launch the kernels of these passes of one micro-batch."""
    forward = FORWARD_SHARE * (passes.forward + passes.recompute)
    backward = (1 - FORWARD_SHARE) * passes.input_gradient
    seconds = shape.num_hidden_layers * HOST_SECONDS_PER_LAYER * (forward + backward)
    if job.torch_compile:
        seconds *= HOST_COMPILED
    if not job.trains_adapter:
        seconds *= HOST_FULL
    if job.base_bits < 16:
        seconds *= HOST_QUANTISED
    return seconds


def optimizer_bytes(job: JobSpec, shape: ModelShape, gpu: Gpu) -> float:
    """Return the bytes that clipping and the optimizer move per step. Adapters count as float32."""
    traffic = OPTIMIZER_TRAFFIC.get(job.optim, DEFAULT_TRAFFIC)
    accesses = traffic.accesses
    if job.max_grad_norm:
        accesses += CLIP_ACCESSES
    if job.trains_adapter:
        return adapter_parameters(job, shape) * (accesses * 4 + traffic.state_bytes)
    bytes_per_number = accesses * stored_bytes(job, gpu) + traffic.state_bytes
    return trained_parameters(job, shape) * bytes_per_number


def _layer_bytes_per_token(job: JobSpec, shape: ModelShape, passes: Passes) -> float:
    """Return the bytes that the layers' element-wise operations move per token."""
    bytes_per_width = LAYER_BYTES
    if not job.torch_compile:
        bytes_per_width *= LIGER_FACTOR if job.use_liger_kernel else EAGER_FACTOR
        if job.trains_adapter and job.use_dora:
            bytes_per_width += ADAPTER_BYTES
        elif job.trains_adapter:
            bytes_per_width += ADAPTER_BYTES * ADAPTER_SHARE_WITHOUT_CAST
    forward = FORWARD_SHARE * (passes.forward + passes.recompute_elementwise)
    backward = (1 - FORWARD_SHARE) * passes.input_gradient
    return bytes_per_width * (forward + backward) * shape.num_hidden_layers * shape.hidden_size


def _score_bytes_per_token(
    shape: ModelShape, passes: Passes, kernel: AttentionKernel, row_tokens: float
) -> float:
    """Return the bytes of attention scores that a kernel moves per token; 0 for most kernels."""
    forward = kernel.forward_bytes_per_score * (passes.forward + passes.recompute)
    backward = kernel.backward_bytes_per_score * passes.input_gradient
    num_scores = row_tokens * shape.num_attention_heads * shape.num_hidden_layers
    return num_scores * (forward + backward)


def _bytes_per_weight(job: JobSpec, gpu: Gpu, passes: Passes) -> float:
    """Return the bytes moved per linear weight and micro-batch.

    Each product reads it in 16 bits. Other formats are converted first; DoRA computes norms.
    """
    forward = passes.forward + passes.recompute
    bytes_per_product = 2.0
    stored = stored_bytes(job, gpu)
    if stored != 2:
        bytes_per_product += stored + 2
    norm_bytes = DORA_BYTES * forward if job.trains_adapter and job.use_dora else 0
    return bytes_per_product * (forward + passes.input_gradient) + norm_bytes


def _offloaded_bytes(job: JobSpec, shape: ModelShape, batch: MicroBatch, passes: Passes) -> float:
    """Return the bytes of activations that move to main memory and back, 16 bits each.

    That is the input of a recomputed layer, and KEPT_TENSORS times as much of another one.
    """
    if not job.activation_offloading:
        return 0
    kept = max(0.0, passes.input_gradient - passes.recompute)
    num_tensors = shape.num_hidden_layers * (passes.recompute + KEPT_TENSORS * kept)
    return 2 * 2 * batch.num_tokens * shape.hidden_size * num_tensors


# Weights


def stored_bytes(job: JobSpec, gpu: Gpu) -> float:
    """Return the bytes of a linear weight of the base.

    Full fine-tuning keeps float32 weights on cards without bfloat16.
    """
    if job.base_bits < 16:
        return job.base_bits / 8
    if job.dtype == "auto":
        is_wide = not job.trains_adapter and not gpu.supports_bf16
    else:
        is_wide = job.dtype == "float32"
    if is_wide:
        return 4
    return 2


@lru_cache(maxsize=64)
def linear_parameters(shape: ModelShape) -> int:
    """Return the weights of the linear layers: those that can be quantised and get adapters."""
    return sum(
        num_layers * tensor.numel
        for tensor, num_layers in _layer_parameters(shape)
        if tensor.is_linear
    )


@lru_cache(maxsize=64)
def active_parameters(shape: ModelShape) -> float:
    """Return the layer weights that a token meets: of experts, only those it is routed to."""
    expert_share = shape.num_experts_per_tok / max(1, shape.num_experts)
    shares = {"linear": 1.0, "router": 1.0, "expert": expert_share}
    return sum(
        num_layers * tensor.numel * shares.get(tensor.role, 0.0)
        for tensor, num_layers in _layer_parameters(shape)
    )


def head_parameters(job: JobSpec, shape: ModelShape) -> int:
    """Return the weights of the last layer; 0 if it does not score the vocabulary."""
    if not HEADS[STAGES[job.stage].head].bytes_per_logit:
        return 0
    return shape.hidden_size * shape.vocab_size


def adapter_parameters(job: JobSpec, shape: ModelShape) -> int:
    """Return the numbers of the adapter: rank x (inputs + outputs) of each targeted layer."""
    if not job.trains_adapter:
        return 0
    linear = job.lora_r * _adapted_widths(shape, job.target_modules)
    return linear + expert_adapter_parameters(job, shape)


def expert_adapter_parameters(job: JobSpec, shape: ModelShape) -> int:
    """Return the numbers of the adapter on experts: for each one, rank x (inputs + outputs)."""
    if not job.trains_adapter:
        return 0
    return job.lora_r * sum(
        times * prod(tensor.shape[:-2]) * sum(tensor.shape[-2:]) * num_layers
        for tensor, num_layers, times in _adapted_experts(shape, job.target_modules)
    )


def trained_parameters(job: JobSpec, shape: ModelShape) -> float:
    """Return the trained numbers of the model itself, for methods without an adapter."""
    if not METHODS[job.method].trains_last_layers:
        return shape.num_parameters
    share = min(job.num_trainable_layers, shape.num_hidden_layers) / shape.num_hidden_layers
    layers = sum(num_layers * tensor.numel for tensor, num_layers in _layer_parameters(shape))
    head = 0 if shape.tie_word_embeddings else shape.hidden_size * shape.vocab_size
    return share * layers + head


# A search forecasts some hundred configurations of one model: count its weights once.


@lru_cache(maxsize=64)
def _adapted_widths(shape: ModelShape, target_modules: str) -> int:
    """Return the sum of inputs and outputs of the layers that get an adapter."""
    targets = set(target_modules.split(","))
    targets -= shape.expert_targets(targets).known
    return sum(
        num_layers * sum(tensor.shape)
        for tensor, num_layers in _layer_parameters(shape)
        if tensor.is_linear and (target_modules == "all-linear" or tensor.module in targets)
    )


def _numbers_of_changed_experts(job: JobSpec, shape: ModelShape) -> int:
    """Return the numbers of the experts that PEFT adds to their adapter in each forward pass, times
    their rank as a multiple of the job's (ParamWrapper in peft/tuners/lora/layer.py, 0.21)."""
    if not job.trains_adapter:
        return 0
    experts = _adapted_experts(shape, job.target_modules)
    return sum(tensor.numel * num_layers * times for tensor, num_layers, times in experts)


@lru_cache(maxsize=64)
def _adapted_experts(
    shape: ModelShape, target_modules: str
) -> tuple[tuple[Parameter, int, int], ...]:
    """Return (parameter of a layer that is no linear layer, number of layers that have it, rank of
    each expert as a multiple of the job's) of those with an adapter."""
    ranks = shape.expert_targets(set(target_modules.split(","))).ranks
    return tuple(
        (tensor, num_layers, ranks[tensor.name])
        for tensor, num_layers in _layer_parameters(shape)
        if tensor.name in ranks
    )


@lru_cache(maxsize=64)
def _layer_type_counts(shape: ModelShape) -> tuple[tuple[str, int], ...]:
    """Return (attention type, number of layers)."""
    return tuple(Counter(shape.layer_types).items())


@lru_cache(maxsize=64)
def _layer_parameters(shape: ModelShape) -> tuple[tuple[Parameter, int], ...]:
    """Return (tensor, number of layers that have it), for dense layers and those with experts."""
    layers_by_kind: dict[bool, list[int]] = {}
    for layer in range(shape.num_hidden_layers):
        layers_by_kind.setdefault(shape.has_experts(layer), []).append(layer)
    return tuple(
        (tensor, len(layers))
        for layers in layers_by_kind.values()
        for tensor in shape.layer_parameters(layers[0])
    )
