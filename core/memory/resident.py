"""Resident memory: weights, adapters and optimizer states, from the first step to the last.

Lists and allocates tensors. Never simulates a step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from core.memory.components import Component
from core.memory.program import LayerKind, Lora, Program, layer_by_mlp
from core.memory.simulator import DeviceMemory, Tensor
from core.models import Parameter


@dataclass(frozen=True)
class Trainable:
    """Parameter tensor that the optimizer updates."""

    shape: tuple[int, ...]
    itemsize: int
    is_layer_matrix: bool = False
    """True for the weight of a linear layer of the base."""

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameter itself."""
        return self.numel * self.itemsize


def parameters(program: Program, kinds: tuple[LayerKind, ...]) -> Iterator[tuple[Parameter, bool]]:
    """Yield (parameter, whether it trains) of a base with layers of these kinds, in order."""
    shape, trains_end = program.shape, program.lora is None and not program.is_frozen
    layer_of = layer_by_mlp(shape)
    embedding, *others = shape.outer_parameters()
    yield embedding, program.lora is None and program.num_trainable_layers is None
    for kind in kinds:
        for tensor in shape.layer_parameters(layer_of[kind.has_experts]):
            yield tensor, kind.trains
    for tensor in others:
        if program.head != "score" or tensor.role != "head":
            yield tensor, trains_end
    if program.head == "score":
        yield Parameter("score.weight", (1, shape.hidden_size), "head"), trains_end


def tower(program: Program) -> tuple[Parameter, ...]:
    """Return the tensors of layers that read pictures: loaded, never trained or adapted."""
    return program.shape.tower.parameters if program.shape.tower else ()


def adapters(program: Program, kinds: tuple[LayerKind, ...]) -> Iterator[Trainable]:
    """Yield the tensors that an adapter adds.

    Per target: A [rank, in] and B [out, rank], with DoRA a magnitude [out] in float32. Experts in
    one tensor have A [ranks of all, in] and B [out, ranks of all]. Then the copies that PEFT makes
    of modules to train them in full: those of modules_to_save and a head that scores. Tied modules
    share a copy.
    """
    lora = program.lora
    if lora is None:
        return
    copied = set(program.modules_to_save)
    if program.head == "score":
        copied.add("score")
    if program.is_tied and "lm_head" in copied:
        copied.add("embed_tokens")
    copies = []
    for parameter, _ in parameters(program, kinds):
        if parameter.is_linear and program.has_adapter(parameter.module):
            num_out, num_in = parameter.shape
            yield Trainable((lora.rank, num_in), lora.itemsize)
            yield Trainable((num_out, lora.rank), lora.itemsize)
            if lora.use_dora:
                yield Trainable((num_out,), 4)
        yield from _expert_adapter(program, lora, parameter)
        if parameter.module in copied:
            copies.append(Trainable(parameter.shape, program.trained_itemsize))
    yield from copies


def _expert_adapter(program: Program, lora: Lora, parameter: Parameter) -> Iterator[Trainable]:
    """Yield the two matrices of a parameter that is no linear layer, if it has an adapter.

    Source: ParamWrapper.update_layer in peft/tuners/lora/layer.py (0.21).
    """
    rank = lora.expert_rank(parameter.name)
    if not rank:
        return
    *experts, num_out, num_in = parameter.shape
    layout = program.shape.family.experts
    if experts and layout is not None and layout.is_transposed:
        num_out, num_in = num_in, num_out
    ranks = rank * prod(experts)
    yield Trainable((ranks, num_in), lora.itemsize)
    yield Trainable((num_out, ranks), lora.itemsize)


def trainables(program: Program, kinds: tuple[LayerKind, ...]) -> tuple[Trainable, ...]:
    """Return every tensor that trains, those of auxiliary models included."""
    tensors: list[Trainable] = []
    trained_models = [each.program for each in program.auxiliary_models if each.trains]
    for model in (program, *trained_models):
        if model.lora is not None:
            tensors += adapters(model, kinds)
            continue
        for parameter, trains in parameters(model, kinds):
            if trains:
                itemsize = model.weight_itemsize
                tensors.append(Trainable(parameter.shape, itemsize, parameter.is_linear))
    return tuple(tensors)


def part(program: Program, size: int) -> int:
    """Return what one device holds of a size that is divided among all."""
    return -(-size // program.num_shards)


def held(program: Program, tensor: Trainable) -> Trainable:
    """Return the part of a trained tensor that one device holds and updates."""
    if program.num_shards == 1:
        return tensor
    return replace(
        tensor,
        shape=(part(program, tensor.shape[0]), *tensor.shape[1:]),
        itemsize=4 if program.widens_trained else tensor.itemsize,
    )


def load(program: Program, kinds: tuple[LayerKind, ...], memory: DeviceMemory) -> None:
    """Load the base, add the adapter, then load auxiliary models.

    Each quantized layer passes through a copy in its original precision. Afterwards
    prepare_model_for_kbit_training replaces everything that is not quantized by a float32 copy.
    Either part may hold the peak of the phase, so that each is a scope.
    """
    if program.num_shards > 1:
        _load_divided(program, kinds, memory)
    else:
        _load_whole(program, kinds, memory)
    for model in program.auxiliary_models:
        if model.program.num_shards > 1:
            base = replace(model.program, lora=None, auxiliary_models=())
            own = tuple(replace(kind, trains=kind.trains and model.trains) for kind in kinds)
            _load_divided(base, own, memory, model.component)
        else:
            memory.allocate(loaded_bytes(model.program), 1, model.component)
        if model.trains:
            for trainable in adapters(model.program, kinds):
                memory.allocate(trainable.num_bytes, 1, "adapters")


def _load_whole(program: Program, kinds: tuple[LayerKind, ...], memory: DeviceMemory) -> None:
    unquantized: list[Tensor] = []
    frozen = ((parameter, False) for parameter in tower(program))
    for parameter, trains in (*parameters(program, kinds), *frozen):
        numel = parameter.numel
        if program.quantization and parameter.is_linear:
            num_out, num_in = parameter.shape
            copy = memory.allocate(numel, program.weight_itemsize, "temporary")
            for num_bytes, component in program.quantization.storage(num_out, num_in):
                memory.allocate(num_bytes, 1, component)
            memory.release(copy)
        else:
            itemsize = 4 if trains and program.widens_trained else program.stored_itemsize
            unquantized.append(memory.allocate(numel, itemsize, "weights"))
    if program.upcasts_unquantized:
        for tensor in unquantized:
            memory.allocate(tensor.numel, 4, "weights")
            memory.release(tensor)
    memory.enter("load/added", "load")
    for trainable in adapters(program, kinds):
        memory.allocate(held(program, trainable).num_bytes, 1, "adapters")


def _load_divided(
    program: Program,
    kinds: tuple[LayerKind, ...],
    memory: DeviceMemory,
    component: Component = "weights",
) -> None:
    """Move a model that is complete in main memory to the device, a group at a time: the last
    layer first, then the embedding, then the tail.

    A group is whole there until its parts are made (_move_states_to_device in
    torch/distributed/fsdp/_fully_shard/_fsdp_init.py).
    """
    move = partial(_move_group, program, memory, component)
    outside = [*parameters(program, ()), *((each, False) for each in tower(program))]
    copies = list(adapters(program, ()))
    num_outside = len(outside) - len(tower(program))
    for kind in reversed(kinds):
        of_layer = list(parameters(program, (kind,)))[1 : 1 - num_outside or None]
        added = list(adapters(program, (kind,)))
        move(of_layer, added[: len(added) - len(copies)])
    memory.enter("load/added", "load")
    if program.is_tied:
        move(outside, copies)
        return
    num_first = len(copies) - 1 if program.trains_head else len(copies)
    move(outside[:1], copies[:num_first])
    move(outside[1:], copies[num_first:])


def _move_group(
    program: Program,
    memory: DeviceMemory,
    component: Component,
    group: Sequence[tuple[Parameter, bool]],
    added: Sequence[Trainable],
) -> None:
    """Allocate a group whole and then its parts, and free the whole one."""
    whole: list[Tensor] = []
    quantization = program.quantization
    for parameter, trains in group:
        if quantization and parameter.is_linear:
            for num_bytes, stored_as in quantization.storage(*parameter.shape):
                if stored_as == "weights":
                    whole.append(memory.allocate(num_bytes, 1, "temporary"))
                    memory.allocate(part(program, num_bytes), 1, component)
                else:  # scales are no parameters, so they are not divided
                    memory.allocate(num_bytes, 1, stored_as)
        else:
            is_wide = program.upcasts_unquantized or (trains and program.widens_trained)
            itemsize = 4 if is_wide else program.stored_itemsize
            whole.append(memory.allocate(parameter.numel, itemsize, "temporary"))
            memory.allocate(part(program, parameter.numel), itemsize, component)
    for tensor in added:
        mine = held(program, tensor)
        whole.append(memory.allocate(tensor.numel, mine.itemsize, "temporary"))
        memory.allocate(mine.num_bytes, 1, "adapters")
    memory.release(*whole)


def allocate_states(program: Program, trained: Iterable[Trainable], memory: DeviceMemory) -> None:
    """Allocate the optimizer's states, as its first step does. Paged ones are not PyTorch's."""
    state_bytes = program.optimizer.state_bytes
    for tensor in trained:
        for num_bytes in state_bytes(tensor.shape, tensor.itemsize, tensor.is_layer_matrix):
            memory.allocate(num_bytes, 1, "optimizer_states")


@dataclass(frozen=True)
class Totals:
    """Sizes of a program's models with all layers."""

    paged_bytes: int
    """Optimizer states in managed memory, which can move to the host."""
    num_parameters: int
    """Parameters of the base."""
    num_trainable_parameters: int


def totals_of(program: Program) -> Totals:
    """Return the sizes of a program's models."""

    in_tower = sum(parameter.numel for parameter in tower(program))

    def measure(kinds: tuple[LayerKind, ...]) -> Sequence[int]:
        trained = trainables(program, kinds)
        return (
            sum(program.optimizer.paged_bytes(tensor.shape) for tensor in trained),
            sum(parameter.numel for parameter, _ in parameters(program, kinds)) + in_tower,
            sum(tensor.numel for tensor in trained),
        )

    return Totals(*_sum_over_layers(program, measure))


def loaded_bytes(program: Program) -> int:
    """Return the bytes of a whole model without adapters once it is loaded."""
    base = replace(program, lora=None, auxiliary_models=())

    def measure(kinds: tuple[LayerKind, ...]) -> Sequence[int]:
        memory = DeviceMemory()
        load(base, kinds, memory)
        return (memory.live_bytes,)

    return _sum_over_layers(program, measure)[0]


def _sum_over_layers(
    program: Program, measure: Callable[[tuple[LayerKind, ...]], Sequence[int]]
) -> list[int]:
    """Return what `measure` returns for all layers, if each layer adds what it adds alone."""
    layers = program.layer_kinds()
    without_layers = measure(())
    total = [*without_layers]
    for kind in dict.fromkeys(layers):
        for index, size in enumerate(measure((kind,))):
            total[index] += layers.count(kind) * (size - without_layers[index])
    return total
