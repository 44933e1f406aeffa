"""What one micro-batch asks of a card and of the processor that feeds it. One formula, one function."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from core.job import JobSpec, OptimizerName
from core.models import Gpu, ModelShape, Tensor
from core.speed.kernels import (
    COMPILED_SHARE,
    EAGER_SHARE,
    AttentionKernel,
    attention_kernel,
    best_flops,
)
from core.speed.passes import Passes
from core.speed.rows import MicroBatch
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES

BACKWARD_ATTENTION = 2.5
"""Products of the backward pass of attention for each of the forward pass: five for two, since the scores were not
kept."""

# Traffic

LAYER_BYTES = 15e6 / (32 * 4096)
"""Bytes that the element-wise operations of a layer move per token and unit of hidden size, forward and backward, when
compiled: 15 MB per token in Llama-3.1-8B (32 layers of 4096)."""
LIGER_FACTOR, EAGER_FACTOR = 1.5, 2.5
"""How much more that is with Liger's kernels and with PyTorch's own, which write every intermediate result."""
ADAPTER_BYTES = 14e6 / (32 * 4096)
"""The same unit for PEFT's adapters beside the linear layers: input casts, and products added up."""
PRODUCTS_SHARE = 3.8 / 7.3
"""Of that, what is left where adapters take their input as it is, which is everywhere but under DoRA: 3.8 of 7.3 us per
token in the forward pass of Llama-3.1-8B on an H100."""
DORA_BYTES = 20
"""Per weight and forward pass: reads it, writes and reads its product and their sum, in float32, for the norm."""
FORWARD_SHARE = 0.4
"""Of the element-wise traffic and the host time of a whole pass, what its forward half takes."""
KEPT_TENSORS = 25
"""Activations that a layer with adapters keeps, in units of its 16-bit input: 206 kB per token in Llama-3.1-8B, counted
with saved-tensor hooks."""
BUS_BYTES_PER_SECOND = 25e9
"""To main memory and back over PCI Express 4.0 with 16 lanes, of its nominal 32 GB/s."""


@dataclass(frozen=True)
class HeadWork:
    """What the last layer of a stage computes."""

    backward_products: int
    """With the vocabulary, for the gradient of the input: and forward once more, where logits were not kept."""
    bytes_per_logit: int
    """0: there are none."""


HEADS: Mapping[str, HeadWork] = MappingProxyType(
    {
        "fused": HeadWork(
            2, 12
        ),  # a 16-bit tile written and read; again in the backward pass, changed and read
        "logits": HeadWork(
            1, 20
        ),  # all logits written and read, their log-softmax too; the gradients of both
        "score": HeadWork(0, 0),
    }
)

# The processor

HOST_SECONDS_PER_LAYER = 0.15 / 32
"""To launch the kernels of a micro-batch, forward and backward: litgpt, Llama-2-7B LoRA, 0.142 s with 32 layers."""
HOST_COMPILED, HOST_FULL, HOST_QUANTISED = 0.35, 0.65, 1.5
"""Factors of the host time: fused kernels; no adapters to launch; weights to unpack (litgpt: 3.68 against 2.36 min)."""


@dataclass(frozen=True)
class OptimizerTraffic:
    """What an optimizer moves per number that trains."""

    accesses: int
    """Reads and writes of a number as wide as the parameter: itself, its gradient, states of that width."""
    state_bytes: int = 0
    """Bytes of other states, read and written."""


OPTIMIZER_TRAFFIC: Mapping[OptimizerName, OptimizerTraffic] = MappingProxyType(
    {
        "adamw_torch_fused": OptimizerTraffic(7),
        "adamw_torch": OptimizerTraffic(
            18
        ),  # one pass over memory per operation (_multi_tensor_adam)
        "adamw_8bit": OptimizerTraffic(3, state_bytes=4),
        "paged_adamw_8bit": OptimizerTraffic(3, state_bytes=4),
        "paged_adamw_32bit": OptimizerTraffic(3, state_bytes=16),
        "lion_8bit": OptimizerTraffic(3, state_bytes=2),
        "adafactor": OptimizerTraffic(
            3, state_bytes=56
        ),  # seven float32 temporaries, written and read
        "sgd": OptimizerTraffic(3),
    }
)
USUAL_TRAFFIC = OptimizerTraffic(18)
"""Of an optimizer that nobody counted: as much as an AdamW that is not fused."""
CLIP_ACCESSES = 3
"""Gradients read for their norm, then read and written to scale them."""


@dataclass(frozen=True)
class Work:
    """What one micro-batch asks of the card, in seconds."""

    matrix_seconds: float
    traffic_seconds: float
    bus_seconds: float = 0.0
    """To move activations to main memory and back."""

    @property
    def total_seconds(self) -> float:
        """One after the other: what does two of these at once is the exception."""
        return self.matrix_seconds + self.traffic_seconds + self.bus_seconds


def work_of(job: JobSpec, shape: ModelShape, gpu: Gpu, batch: MicroBatch, passes: Passes) -> Work:
    """Seconds of matrix math and of memory traffic in these passes of one micro-batch."""
    kernel = attention_kernel(job, shape, gpu)
    share = COMPILED_SHARE if job.torch_compile else EAGER_SHARE
    products = batch.num_tokens * _matmul_flops_per_token(job, shape, passes) / share
    attention_passes = (
        passes.forward + passes.recompute + BACKWARD_ATTENTION * passes.input_gradient
    )
    attention = (
        batch.num_tokens
        * attention_passes
        * attention_flops_per_pass(shape, kernel, batch.attended_tokens)
    )
    moved_bytes = batch.num_tokens * _traffic_bytes_per_token(
        job, shape, passes, kernel, batch.attended_tokens
    )
    moved_bytes += linear_parameters(shape) * _bytes_per_weight(job, gpu, passes)
    return Work(
        (products + attention / kernel.share) / best_flops(gpu),
        moved_bytes / gpu.memory_bandwidth_bytes_per_second,
        _offloaded_bytes(job, shape, batch, passes) / BUS_BYTES_PER_SECOND,
    )


def _matmul_flops_per_token(job: JobSpec, shape: ModelShape, passes: Passes) -> float:
    """Two operations per weight and pass, forward and for the gradient of the input; one pass more for the gradient of
    the weight where it trains."""
    counts = passes.forward + passes.recompute + passes.input_gradient
    layers = active_parameters(shape) * (counts + passes.weight_gradient)
    adapters = adapter_parameters(job, shape) * (counts + 1)
    head = HEADS[STAGES[job.stage].head]
    is_backward, trains_head = passes.input_gradient > 0, not job.trains_adapter
    head_counts = passes.forward + is_backward * (head.backward_products + trains_head)
    return 2 * (layers + adapters + head_parameters(job, shape) * head_counts)


def attention_flops_per_pass(
    shape: ModelShape, kernel: AttentionKernel, row_tokens: float
) -> float:
    """Two products per token and forward pass; the backward pass takes BACKWARD_ATTENTION as many."""
    width = shape.num_attention_heads * shape.head_dim
    keys = sum(
        count
        * _keys_per_token(
            kernel, row_tokens, shape.sliding_window if layer_type == "sliding_attention" else None
        )
        for layer_type, count in Counter(shape.layer_types).items()
    )
    return 4 * width * keys


def head_parameters(job: JobSpec, shape: ModelShape) -> int:
    """Weights of the last layer, where it scores the vocabulary."""
    return (
        shape.hidden_size * shape.vocab_size if HEADS[STAGES[job.stage].head].bytes_per_logit else 0
    )


def host_seconds(job: JobSpec, shape: ModelShape, passes: Passes) -> float:
    """Seconds in which the processor launches the kernels of these passes of one micro-batch."""
    forward = FORWARD_SHARE * (passes.forward + passes.recompute)
    factors = (
        (HOST_COMPILED, job.torch_compile),
        (HOST_FULL, not job.trains_adapter),
        (HOST_QUANTISED, job.base_bits < 16),
        (forward + (1 - FORWARD_SHARE) * passes.input_gradient, True),
    )
    return (
        shape.num_hidden_layers
        * HOST_SECONDS_PER_LAYER
        * prod(factor for factor, applies in factors if applies)
    )


def update_bytes(job: JobSpec, shape: ModelShape, gpu: Gpu) -> float:
    """Bytes that clipping and the optimizer move, once per step. Adapters count as float32."""
    traffic = OPTIMIZER_TRAFFIC.get(job.optim, USUAL_TRAFFIC)
    accesses = traffic.accesses + (CLIP_ACCESSES if job.max_grad_norm else 0)
    if job.trains_adapter:
        return adapter_parameters(job, shape) * (accesses * 4 + traffic.state_bytes)
    return _trained_parameters(job, shape) * (
        accesses * stored_bytes(job, gpu) + traffic.state_bytes
    )


def stored_bytes(job: JobSpec, gpu: Gpu) -> float:
    """Bytes of a linear weight of the base. In full, weights are float32 where there is no bfloat16."""
    if job.base_bits < 16:
        return job.base_bits / 8
    is_wide = job.dtype == "float32" or (
        job.dtype == "auto" and not job.trains_adapter and not gpu.supports_bf16
    )
    return 4 if is_wide else 2


def linear_parameters(shape: ModelShape) -> int:
    """Weights of the linear layers: what can be quantised, and gets an adapter."""
    return sum(
        count * tensor.num_elements for tensor, count in _layer_tensors(shape) if tensor.is_linear
    )


def active_parameters(shape: ModelShape) -> float:
    """Weights of the layers that a token meets: of a mixture of experts, the experts that it is sent to."""
    shares = {
        "linear": 1.0,
        "router": 1.0,
        "expert": shape.num_experts_per_tok / max(1, shape.num_experts),
    }
    return sum(
        count * tensor.num_elements * shares.get(tensor.kind, 0.0)
        for tensor, count in _layer_tensors(shape)
    )


def adapter_parameters(job: JobSpec, shape: ModelShape) -> int:
    """Numbers of the adapter: rank x (inputs + outputs) of each targeted layer."""
    if not job.trains_adapter:
        return 0
    targets = None if job.target_modules == "all-linear" else set(job.target_modules.split(","))
    return job.lora_r * sum(
        count * sum(tensor.shape)
        for tensor, count in _layer_tensors(shape)
        if tensor.is_linear and (targets is None or tensor.module in targets)
    )


def _trained_parameters(job: JobSpec, shape: ModelShape) -> float:
    """The model's own numbers that train."""
    if not METHODS[job.method].trains_last_layers:
        return shape.num_parameters
    layers = min(job.num_trainable_layers, shape.num_hidden_layers) / shape.num_hidden_layers
    head = 0 if shape.tie_word_embeddings else shape.hidden_size * shape.vocab_size
    return (
        layers * sum(count * tensor.num_elements for tensor, count in _layer_tensors(shape)) + head
    )


def _keys_per_token(kernel: AttentionKernel, row_tokens: float, window: int | None) -> float:
    """Keys that a token meets, on average over its row."""
    if not kernel.skips_masked:
        return row_tokens
    if window is None or window >= row_tokens:
        return row_tokens / 2
    return window * (1 - window / (2 * row_tokens))


def _traffic_bytes_per_token(
    job: JobSpec, shape: ModelShape, passes: Passes, kernel: AttentionKernel, row_tokens: float
) -> float:
    """Bytes that everything but matrix products moves, per token."""
    eager = LIGER_FACTOR if job.use_liger_kernel else EAGER_FACTOR
    per_width = LAYER_BYTES * (1 if job.torch_compile else eager)
    if job.trains_adapter and not job.torch_compile:
        per_width += ADAPTER_BYTES * (1 if job.use_dora else PRODUCTS_SHARE)
    forward = passes.forward + passes.recompute
    per_width *= (
        FORWARD_SHARE * (passes.forward + passes.rewrite)
        + (1 - FORWARD_SHARE) * passes.input_gradient
    )
    per_score = (
        kernel.forward_bytes_per_score * forward
        + kernel.backward_bytes_per_score * passes.input_gradient
    )
    scores = row_tokens * shape.num_attention_heads * shape.num_hidden_layers * per_score
    logits = HEADS[STAGES[job.stage].head].bytes_per_logit * shape.vocab_size
    return per_width * shape.num_hidden_layers * shape.hidden_size + scores + logits


def _bytes_per_weight(job: JobSpec, gpu: Gpu, passes: Passes) -> float:
    """Bytes moved per linear weight and micro-batch: read in 16 bits by each product, brought there before it if it is
    stored otherwise, and DoRA's norms."""
    stored, forward = stored_bytes(job, gpu), passes.forward + passes.recompute
    converted = stored + 2 if stored != 2 else 0
    norms = DORA_BYTES * forward if job.trains_adapter and job.use_dora else 0
    return (2 + converted) * (forward + passes.input_gradient) + norms


def _offloaded_bytes(job: JobSpec, shape: ModelShape, batch: MicroBatch, passes: Passes) -> float:
    """Activations that go to main memory and come back, 16 bits wide: the input of a layer that is recomputed, and
    KEPT_TENSORS as wide as that of one that is not."""
    if not job.activation_offloading:
        return 0
    tensors = passes.recompute + KEPT_TENSORS * max(0.0, passes.input_gradient - passes.recompute)
    return 2 * 2 * batch.num_tokens * shape.hidden_size * shape.num_hidden_layers * tensors


def _layer_tensors(shape: ModelShape) -> tuple[tuple[Tensor, int], ...]:
    """The tensors of each kind of layer, with the number of such layers."""
    kinds = Counter(shape.has_experts(layer) for layer in range(shape.num_hidden_layers))
    example = {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}
    return tuple(
        (tensor, count)
        for kind, count in kinds.items()
        for tensor in shape.layer_tensors(example[kind])
    )
