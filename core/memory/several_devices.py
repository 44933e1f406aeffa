"""Memory of each device when several train together: what FSDP2 divides among them and gathers
again, and what DDP and NCCL add.

Sources: _fsdp_collectives.py and _fsdp_param_group.py in torch/distributed/fsdp (2.13),
fsdp2_prepare_model in accelerate (1.15), torch/nn/parallel/distributed.py.
"""

from dataclasses import dataclass, replace

from core.memory.context import Context
from core.memory.program import LayerKind, Program
from core.memory.resident import Trainable, adapters, parameters, part

MIB = 2**20
NCCL_BYTES = 512 * MIB
"""Buffers of NCCL's channels on each device: 0.3 to 1 GiB by reports, not measured here."""


@dataclass(frozen=True)
class Gathered:
    """Whole tensors that a device holds for a moment, in bytes."""

    forward_bytes: int
    backward_bytes: int


def gathered(program: Program) -> Gathered:
    """Return what FSDP2 holds beside the shards: nothing if the model is not divided.

    Forward: a layer, the flat buffer that it was gathered in, and that of the next one. Backward:
    two layers, and of the current one the whole gradients and the input of their reduce-scatter.
    The head stays whole from the forward to the backward pass.
    """
    if program.num_shards == 1:
        return Gathered(0, 0)
    layer, layer_gradients = _largest_layer(program)
    head, head_gradients = _head(program)
    forward = 3 * layer + head
    backward = head + max(2 * layer + 2 * layer_gradients, layer + 2 * head_gradients)
    return Gathered(forward, backward)


def bucket_bytes(program: Program, trained: tuple[Trainable, ...]) -> int:
    """Return the size of DDP's buckets: one more copy of every gradient."""
    if program.num_devices == 1 or program.is_sharded:
        return 0
    return sum(each.num_bytes for each in trained)


def gradient_share(program: Program) -> float:
    """Return the share of a gradient that a device keeps: its part, as wide as the weight is."""
    width = program.master_itemsize / program.weight_itemsize if program.lora is None else 1
    return width / program.num_shards


def with_nccl(context: Context) -> Context:
    """Return what a process takes beside its tensors when it talks with other GPUs."""
    return replace(
        context,
        expected_bytes=context.expected_bytes + NCCL_BYTES,
        low_bytes=context.low_bytes + NCCL_BYTES // 2,
        high_bytes=context.high_bytes + 2 * NCCL_BYTES,
        title=f"{context.title} and NCCL",
    )


def sharded(program: Program, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
    """Return the parts of trained tensors that one device holds and updates."""
    if program.num_shards == 1:
        return tensors
    is_base = program.lora is None
    return tuple(
        Trainable(
            (part(program, each.shape[0]), *each.shape[1:]),
            program.master_itemsize if is_base else each.itemsize,
            each.is_layer_matrix,
        )
        for each in tensors
    )


def _largest_layer(program: Program) -> tuple[int, int]:
    """Return the bytes of the largest layer as it is gathered, and those of its gradients."""
    sizes = [_size_of_layer(program, kind) for kind in set(program.layer_kinds())]
    return max(sizes)


def _size_of_layer(program: Program, kind: LayerKind) -> tuple[int, int]:
    weights, gradients = 0, 0
    num_outside = sum(1 for _ in parameters(program, ()))
    every = list(parameters(program, (kind,)))
    for parameter, trains in every[1 : len(every) - num_outside + 1]:
        num_bytes = parameter.numel * program.weight_itemsize
        if program.quantization and parameter.is_linear:
            num_bytes = parameter.numel * program.quantization.bits // 8
        weights += num_bytes
        gradients += num_bytes if trains else 0
    if program.lora is None:
        return weights, gradients
    num_bytes = sum(each.num_bytes for each in adapters(program, (kind,)))
    return weights + num_bytes, num_bytes


def _head(program: Program) -> tuple[int, int]:
    shape = program.shape
    num_bytes = shape.vocab_size * shape.hidden_size * program.weight_itemsize
    return num_bytes, num_bytes if program.trains_head else 0
