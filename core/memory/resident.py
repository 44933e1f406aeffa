"""What stays on the device from the first step to the last: weights, adapters, optimizer states.

Counts and lays out tensors; what a step does with them is not its concern.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from core.memory.heap import Heap, Tensor
from core.memory.program import LayerKind, Program
from core.shapes import Tensor as Parameter


@dataclass(frozen=True)
class Trainable:
    """One parameter tensor that the optimizer updates."""

    shape: tuple[int, ...]
    number_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameter itself."""
        return prod(self.shape) * self.number_bytes


def parameters(program: Program, kinds: tuple[LayerKind, ...]) -> Iterator[Parameter]:
    """Every parameter tensor of the base, in the order of the model, with layers of these kinds."""
    shape = program.shape
    embedding, *rest = shape.outer_tensors()
    layer_of = {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}
    yield embedding
    for kind in kinds:
        yield from shape.layer_tensors(layer_of[kind.has_experts])
    yield from rest


def adapters(program: Program, kinds: tuple[LayerKind, ...]) -> Iterator[Trainable]:
    """Every tensor of the adapter: per target [rank, in] and [out, rank], with DoRA also [out] in float32."""
    lora = program.lora
    if lora is None:
        return
    for parameter in parameters(program, kinds):
        if parameter.is_linear and program.has_adapter(parameter.module):
            num_out, num_in = parameter.shape
            yield Trainable((lora.rank, num_in), lora.number_bytes)
            yield Trainable((num_out, lora.rank), lora.number_bytes)
            if lora.use_dora:
                yield Trainable((num_out,), 4)


def trainables(program: Program, kinds: tuple[LayerKind, ...]) -> tuple[Trainable, ...]:
    """Every tensor that trains: the adapter's, or all of them."""
    if program.lora is not None:
        return tuple(adapters(program, kinds))
    return tuple(Trainable(p.shape, program.weight_bytes) for p in parameters(program, kinds))


def load(program: Program, kinds: tuple[LayerKind, ...], heap: Heap) -> None:
    """Load the base, then add the adapter.

    A quantised layer passes through a copy as loaded; prepare_model_for_kbit_training then replaces everything that
    is not quantised by a float32 copy.
    """
    rest: list[Tensor] = []
    for parameter in parameters(program, kinds):
        if program.quantization and parameter.is_linear:
            num_out, num_in = parameter.shape
            copy = heap.allocate(parameter.num_elements, program.weight_bytes, "temporary")
            for num_bytes, kind in program.quantization.storage(num_out, num_in):
                heap.allocate(num_bytes, 1, kind)
            heap.drop(copy)
        else:
            rest.append(heap.allocate(parameter.num_elements, program.weight_bytes, "weights"))
    if program.upcasts_rest:
        for tensor in rest:
            heap.allocate(tensor.numbers, 4, "weights")
            heap.drop(tensor)
    for trainable in adapters(program, kinds):
        heap.allocate(trainable.num_bytes, 1, "adapters")


def allocate_states(program: Program, trained: tuple[Trainable, ...], heap: Heap) -> None:
    """The optimizer's first step makes its states; paged ones are not the allocator's."""
    optimizer = program.optimizer
    for trainable in trained:
        for num_bytes in optimizer.states(trainable.shape, trainable.number_bytes):
            heap.allocate(num_bytes, 1, "optimizer_states")


def paged_state_bytes(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    """Optimizer states in managed memory: they count in the process, and can move to the host."""
    return sum(program.optimizer.paged_bytes(trainable.shape) for trainable in trainables(program, kinds))


def num_parameters(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    """Parameters of the base."""
    return sum(parameter.num_elements for parameter in parameters(program, kinds))


def num_trainable_parameters(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    """Parameters that train."""
    return sum(prod(trainable.shape) for trainable in trainables(program, kinds))
