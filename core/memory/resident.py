"""What stays on the device from the first step to the last: weights, adapters, optimizer states.

Counts and lays out tensors; what a step does with them is not its concern.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

from core.memory.program.program import LayerKind, Program
from core.memory.simulator.device_memory import Heap, Tensor
from core.models import Tensor as Parameter


@dataclass(frozen=True)
class Trainable:
    """One parameter tensor that the optimizer updates."""

    shape: tuple[int, ...]
    number_bytes: int
    is_matrix_of_layer: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameter itself."""
        return prod(self.shape) * self.number_bytes


def parameters(program: Program, kinds: tuple[LayerKind, ...]) -> Iterator[tuple[Parameter, bool]]:
    """Every parameter tensor of a base with layers of these kinds, in its order, and whether it trains."""
    shape = program.shape
    embedding, *rest = shape.outer_tensors()
    layer_of = {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}
    trains_all = program.lora is None and program.trained_layers is None
    yield embedding, trains_all
    for kind in kinds:
        for tensor in shape.layer_tensors(layer_of[kind.has_experts]):
            yield tensor, kind.trains
    for tensor in rest:
        if program.head != "score" or tensor.kind != "head":
            yield tensor, program.lora is None
    if program.head == "score":
        yield Parameter("score.weight", (1, shape.hidden_size), "head"), program.lora is None


def adapters(program: Program, kinds: tuple[LayerKind, ...]) -> Iterator[Trainable]:
    """Every tensor of the adapter: per target [rank, in] and [out, rank], with DoRA also [out] in float32; then the
    copies of whole modules that train beside it."""
    lora = program.lora
    if lora is None:
        return
    for parameter, _ in parameters(program, kinds):
        if parameter.is_linear and program.has_adapter(parameter.module):
            num_out, num_in = parameter.shape
            yield Trainable((lora.rank, num_in), lora.number_bytes)
            yield Trainable((num_out, lora.rank), lora.number_bytes)
            if lora.use_dora:
                yield Trainable((num_out,), 4)
    yield from [
        Trainable(p.shape, program.whole_module_bytes) for p in _copied_modules(program, kinds)
    ]


def _copied_modules(program: Program, kinds: tuple[LayerKind, ...]) -> list[Parameter]:
    """What PEFT copies to train it whole: the modules asked for, and a head that scores. Tied ones share a copy."""
    names = set(program.saved_modules) | ({"score"} if program.head == "score" else set())
    if program.is_tied and "lm_head" in names:
        names.add("embed_tokens")
    return [parameter for parameter, _ in parameters(program, kinds) if parameter.module in names]


def trainables(program: Program, kinds: tuple[LayerKind, ...]) -> tuple[Trainable, ...]:
    """Every tensor that trains: the adapter's, or those of the base."""
    if program.lora is not None:
        return tuple(adapters(program, kinds))
    trained = (parameter for parameter, trains in parameters(program, kinds) if trains)
    return tuple(Trainable(each.shape, program.weight_bytes, each.is_linear) for each in trained)


def all_trainables(program: Program, kinds: tuple[LayerKind, ...]) -> tuple[Trainable, ...]:
    """Every tensor that trains, those of companions among them."""
    trained = (program, *(each.program for each in program.companions if each.trains))
    return tuple(tensor for model in trained for tensor in trainables(model, kinds))


def load(program: Program, kinds: tuple[LayerKind, ...], heap: Heap) -> None:
    """Load the base, add the adapter, then what is kept beside it.

    A quantised layer passes through a copy as loaded; prepare_model_for_kbit_training then replaces everything that
    is not quantised by a float32 copy. The peak may lie in either part, so that each has one of its own.
    """
    rest: list[Tensor] = []
    for parameter, _ in parameters(program, kinds):
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
    heap.enter("load/rest", "load")
    for trainable in adapters(program, kinds):
        heap.allocate(trainable.num_bytes, 1, "adapters")
    for companion in program.companions:
        heap.allocate(base_bytes(companion.program), 1, companion.kind)
        if companion.trains:
            for trainable in adapters(companion.program, kinds):
                heap.allocate(trainable.num_bytes, 1, "adapters")


def base_bytes(program: Program) -> int:
    """Bytes of a whole model without adapters, as it lies loaded."""
    bare = replace(program, lora=None, companions=())
    return sum_over_layers(program, lambda kinds: _loaded_bytes(bare, kinds))


def _loaded_bytes(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    heap = Heap()
    heap.enter("load")
    load(program, kinds, heap)
    return heap.live_bytes


def sum_over_layers(program: Program, measure: Callable[[tuple[LayerKind, ...]], int]) -> int:
    """`measure` of the whole model, when each layer adds what it adds alone."""
    kinds, outside = program.layer_kinds(), measure(())
    return outside + sum(
        kinds.count(kind) * (measure((kind,)) - outside) for kind in dict.fromkeys(kinds)
    )


def allocate_states(program: Program, trained: tuple[Trainable, ...], heap: Heap) -> None:
    """The optimizer's first step makes its states; paged ones are not the allocator's."""
    optimizer = program.optimizer
    for trainable in trained:
        for num_bytes in optimizer.states(
            trainable.shape, trainable.number_bytes, trainable.is_matrix_of_layer
        ):
            heap.allocate(num_bytes, 1, "optimizer_states")


def paged_state_bytes(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    """Optimizer states in managed memory: they count in the process, and can move to the host."""
    return sum(
        program.optimizer.paged_bytes(trainable.shape)
        for trainable in all_trainables(program, kinds)
    )


def num_parameters(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    """Parameters of the base."""
    return sum(parameter.num_elements for parameter, _ in parameters(program, kinds))


def num_trainable_parameters(program: Program, kinds: tuple[LayerKind, ...]) -> int:
    """Parameters that train."""
    return sum(prod(trainable.shape) for trainable in all_trainables(program, kinds))
