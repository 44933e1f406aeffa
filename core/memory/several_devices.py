"""Memory of each device when several train together: what FSDP2 divides among them and gathers
again, and what DDP and NCCL add.

Sources: _fsdp_collectives.py and _fsdp_param_group.py in torch/distributed/fsdp (2.13),
fsdp2_prepare_model in accelerate (1.15), torch/nn/parallel/distributed.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from core.memory.context import Context, context_of
from core.memory.program import LayerKind, Program, is_cpu
from core.memory.resident import Trainable, adapters, parameters
from core.memory.simulator import AutogradGraph, Division, Tensor
from core.models import Gpu

MIB = 2**20
NCCL_BYTES = 512 * MIB
"""Buffers of NCCL's channels on each device: 0.3 to 1 GiB by reports, not measured here."""


EMBEDDING, TAIL = "embedding", "tail"


@dataclass(frozen=True)
class GatheredTensors:
    """Tensors that FSDP2 gathers together, such as those of a layer."""

    weight_bytes: int
    """Whole, as they are gathered."""


class Gathers:
    """Whole tensors that a device holds for a moment, beside its parts of them.

    Groups are the embedding, each layer, and the tail: last norm and head, with a tied embedding.
    Without a division nothing is gathered, and every method does nothing. Sources:
    fsdp2_prepare_model in accelerate, _fsdp_param_group.py in torch/distributed/fsdp.
    """

    def __init__(self, program: Program, graph: AutogradGraph, *, keeps_tail: bool = True) -> None:
        self._program = program
        self._keeps_tail = keeps_tail
        """False for a model without backward passes (divide_reference in core/training)."""
        self._graph = graph
        self._memory = graph.memory
        self._is_divided = program.num_shards > 1
        self._reads_head = not program.calls_head
        """True if a loss reads the head's weight, and does not call the head."""
        self._whole: dict[str, Tensor] = {}
        """Group -> its whole tensors."""
        self._buffers: list[Tensor] = []
        """Buffer that the last group was gathered in, or a group that is gathered ahead."""
        self._heads: list[Tensor] = []
        """Heads that the fused head has gathered, each for one pass."""
        self._sent: list[Tensor] = []
        """Gradients that were sent last: their buffer stays until the next are."""

    # Forward

    def forward_embedding(self) -> None:
        """Gather the embedding; a tied one stays until the end of the backward pass."""
        if self._program.is_tied:
            self._gather(TAIL, _tail(self._program))
        else:
            self._gather(EMBEDDING, _words(self._program, self._program.trains_embedding))

    def forward_layer(self, index: int, kind: LayerKind) -> None:
        """Free what is before a layer and gather it."""
        self._free_layers()
        self._gather(f"layer {index}", _layer(self._program, kind))

    def forward_tail(self) -> None:
        """Free the last layer and gather the tail, which stays for the backward pass."""
        self._free_layers()
        program = self._program
        if program.lora is None or program.is_tied or not self._reads_head:
            self._gather(TAIL, _tail(program))
            if not self._reads_head:
                self._free_buffers()  # the loss comes after the model
        elif self._is_divided and TAIL not in self._whole:
            # An adapter's head is in a group alone, and never called: the fused head gathers its
            # weight itself, as it is stored (add_fused_lm_head in trl/trainer/utils.py).
            numel = program.shape.vocab_size * program.shape.hidden_size
            self._heads.append(self._memory.allocate(numel, program.head_itemsize, "temporary"))

    def called_tail(self) -> None:
        """Free the last layer and gather a tail whose head is called like any other layer."""
        self._free_layers()
        self._gather(TAIL, _tail(self._program))
        if self._program.lora is None or self._program.is_tied:
            self._free_buffers()  # the head finds its group gathered for the norm

    def end_forward(self, has_graph: bool = True) -> None:
        """Free the last buffer; without a graph the head that an adapter gathers, too."""
        self._free_buffers()
        if not has_graph:
            self._free_head()
        if not self._keeps_tail and TAIL in self._whole:
            self._memory.release(self._whole.pop(TAIL))

    def end_generation(self) -> None:
        """Free the last layer that read the cache."""
        self._free_layers()
        self._free_buffers()

    # Backward

    def backward_tail(self, kinds: Sequence[LayerKind]) -> None:
        """Gather the last layer ahead of time: the tail is whole.

        A loss that calls the head makes its gradient before the backward pass of the model.
        """
        if self._is_divided and self._reads_head:
            self._buffers = [self._allocate(_layer(self._program, kinds[-1]))]

    def after_tail(self) -> None:
        """Divide the gradients of the tail, unless the embedding adds to them."""
        self._free_head()
        if self._program.is_tied:
            return
        reads_head = self._program.lora is not None and self._reads_head
        called = self._whole.pop(TAIL, None) if reads_head else None
        self._leave(TAIL)
        if called:  # whole since it wrote answers: no backward hook of its group frees it
            self._whole[TAIL] = called

    def backward_layer(self, index: int, kinds: Sequence[LayerKind]) -> None:
        """Gather a layer again, and ahead of time what is before it."""
        ahead = None
        if index > 0:
            ahead = _layer(self._program, kinds[index - 1])
        elif not self._program.is_tied:
            ahead = _words(self._program, self._program.trains_embedding)
        self._gather_again(f"layer {index}", _layer(self._program, kinds[index]), ahead)

    def after_layer(self, index: int) -> None:
        """Free a layer and divide its gradients."""
        self._leave(f"layer {index}")

    def backward_embedding(self) -> None:
        """Gather the embedding again if the backward pass reaches it."""
        program = self._program
        is_reached = program.trains_embedding or program.requires_input_gradients
        if is_reached and not program.is_tied:
            self._gather_again(EMBEDDING, _words(program, program.trains_embedding), None)

    def end_backward(self) -> None:
        """Divide the gradients of the embedding, and free everything."""
        self._leave(TAIL if self._program.is_tied else EMBEDDING)
        if TAIL in self._whole:
            self._memory.release(self._whole.pop(TAIL))
        self._free_buffers()
        self._memory.release(*self._sent)
        self._sent = []

    def _gather(self, name: str, group: GatheredTensors) -> None:
        if not self._is_divided or name in self._whole:
            return
        buffer = self._allocate(group)
        self._whole[name] = self._allocate(group)
        self._free_buffers()  # that of the group before, once this one is whole
        self._buffers = [buffer]

    def _gather_again(
        self, name: str, group: GatheredTensors, ahead: GatheredTensors | None
    ) -> None:
        if not self._is_divided:
            return
        if not self._buffers:
            self._buffers = [self._allocate(group)]
        self._whole[name] = self._allocate(group)
        self._free_buffers()
        if ahead is not None:
            self._buffers = [self._allocate(ahead)]

    def _leave(self, name: str) -> None:
        if not self._is_divided:
            return
        if name in self._whole:
            self._memory.release(self._whole.pop(name))
        self._memory.release(*self._sent)
        self._sent = self._graph.divide_gradients()

    def _free_head(self) -> None:
        if self._heads:
            self._memory.release(self._heads.pop())

    def _free_layers(self) -> None:
        for name in [each for each in self._whole if each != TAIL]:
            self._memory.release(self._whole.pop(name))

    def _allocate(self, group: GatheredTensors) -> Tensor:
        return self._memory.allocate(group.weight_bytes, 1, "temporary")

    def _free_buffers(self) -> None:
        self._memory.release(*self._buffers)
        self._buffers = []


def bucket_bytes(program: Program, trained: tuple[Trainable, ...]) -> int:
    """Return the size of DDP's buckets: one more copy of every gradient."""
    if program.num_devices == 1 or program.is_sharded:
        return 0
    return sum(each.num_bytes for each in trained)


def division(program: Program) -> Division | None:
    """Return how gradients are divided; None if each device keeps all of them."""
    if program.num_shards == 1:
        return None
    width = 4 / program.trained_width if program.widens_trained else 1
    return Division(program.num_shards, width)


def room_of_each(gpu: Gpu, num_devices: int) -> tuple[int, Context]:
    """Return the bytes that each process of a job may use, and what it takes beside its tensors.

    Processes without a GPU share the main memory of the machine.
    """
    context = context_of(gpu)
    if is_cpu(gpu):
        return gpu.capacity_bytes // num_devices, context
    return gpu.capacity_bytes, _with_nccl(context) if num_devices > 1 else context


def _with_nccl(context: Context) -> Context:
    """Return what a process takes beside its tensors when it talks with other GPUs."""
    return replace(
        context,
        expected_bytes=context.expected_bytes + NCCL_BYTES,
        low_bytes=context.low_bytes + NCCL_BYTES // 2,
        high_bytes=context.high_bytes + 2 * NCCL_BYTES,
        title=f"{context.title} and NCCL",
    )


@lru_cache(maxsize=256)
def _layer(program: Program, kind: LayerKind) -> GatheredTensors:
    num_bytes = 0
    num_outside = sum(1 for _ in parameters(program, ()))
    every = list(parameters(program, (kind,)))
    for parameter, _trains in every[1 : len(every) - num_outside + 1]:
        if program.quantization and parameter.is_linear:
            num_bytes += parameter.numel * program.quantization.bits // 8
        else:
            num_bytes += parameter.numel * program.weight_itemsize
    adapted = sum(each.num_bytes for each in adapters(program, (kind,)))
    outside = sum(each.num_bytes for each in adapters(program, ()))  # copies of embedding and head
    return GatheredTensors(num_bytes + adapted - outside)


def _tail(program: Program) -> GatheredTensors:
    if program.head == "score" and not program.shape.tie_word_embeddings:
        return GatheredTensors(0)
    return _words(program, program.trains_head)


def _words(program: Program, trains: bool) -> GatheredTensors:
    """Return the embedding or the head; an adapter that trains it has a copy."""
    numel = program.shape.vocab_size * program.shape.hidden_size
    num_bytes = numel * program.weight_itemsize
    if trains and program.lora:
        num_bytes += numel * program.trained_itemsize
    return GatheredTensors(num_bytes)
