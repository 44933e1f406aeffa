"""Autograd: what operations allocate, save for the backward pass, and free again in that pass.

Sources: torch/csrc/autograd/engine.cpp (order of nodes), input_buffer.cpp (sums of gradients),
functions/accumulate_grad.h. Knows no model.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from core.memory.components import Component
from core.memory.simulator.device_memory import DeviceMemory, Tensor

ALIASES_UPSTREAM: Final = -1
"""Instead of a gradient's bytes: the input's gradient is that of the output, as in an addition."""
MIN_OFFLOADED_BYTES: Final = 1024
MAX_TENSORS_IN_FLIGHT: Final = 5
"""min_offload_size and max_fwd_stash_size of trl/models/activation_offloading.py."""


@dataclass(frozen=True, slots=True)
class WeightGradient:
    """Gradient of one parameter that the backward pass of an operation makes."""

    parameter: str
    num_bytes: int
    temporary_bytes: int = 0
    """Needed while it is made, such as the same gradient in the precision of the matmul."""
    is_partial: bool = False
    """True if another operation uses the parameter too: this part waits until both can be added."""


@dataclass(frozen=True, slots=True)
class Division:
    """Division of gradients among devices, which each keep a part."""

    num_parts: int
    width: float
    """Bytes of a kept gradient's element, as a multiple of those of the gradient that is made."""


@dataclass(slots=True)
class Node:
    """One recorded operation."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    saved: list[Tensor]
    """Tensors kept on the device until its backward pass."""
    offloaded: list[Tensor]
    """Tensors kept in main memory; its backward pass copies them back."""
    saves_constant: bool
    """True if its backward pass also reads a parameter or scalar, which takes no extra memory."""
    gradient_bytes: Sequence[int]
    """Bytes of the gradient of each input, or ALIASES_UPSTREAM."""
    weights: Sequence[WeightGradient]
    backward_bytes: int
    """Temporary bytes from the beginning to the end of its backward pass."""
    temporary_component: Component
    kernel_bytes: int
    """Temporary bytes of its backward kernel, allocated after the results."""


class AutogradGraph:
    """Records operations as they run forward, and runs them backward.

    With `offloads`, saved tensors are copied to main memory. The last few stay on the device until
    their copy has arrived (OffloadActivations in trl/models/activation_offloading.py).
    """

    def __init__(
        self, memory: DeviceMemory, offloads: bool = False, division: Division | None = None
    ):
        self.memory = memory
        self.division = division
        """None: the device keeps every gradient whole."""
        self._whole_gradients: dict[str, Tensor] = {}
        """Gradients that are not divided yet."""
        self.retain, self.release = memory.retain, memory.release
        self.offloads = offloads
        self.is_recording = True
        self.nodes: list[Node] = []
        self.num_savers = 0
        """Number of operations so far that saved something."""
        self.stop_after: int | None = None
        """Number of savers after which a recomputed layer stops, since checkpointing needs nothing
        more (_StopRecomputationError in torch/utils/checkpoint.py). None: runs to its end."""
        self.gradients: dict[str, Tensor] = {}
        """Gradient of each parameter by its name."""
        self.deferred: list[Tensor] | None = None
        """Gradients to be added when the backward pass of a compiled layer ends. None: each is
        added at once, as without torch.compile."""
        self._partial_gradients: dict[str, Tensor] = {}
        self._in_flight: deque[Tensor] = deque()

    def record(
        self,
        *inputs: Tensor,
        numel: int | None = None,
        itemsize: int | None = None,
        component: Component = "activations",
        consumes: bool = False,
        saves: Sequence[Tensor] = (),
        saves_output: bool = False,
        saves_constant: bool = False,
        weights: Sequence[WeightGradient] = (),
        gradient_bytes: Sequence[int] | None = None,
        temporary_bytes: int = 0,
        backward_bytes: int = 0,
        kernel_bytes: int = 0,
        temporary_component: Component = "temporary",
    ) -> Tensor:
        """Run one operation and return its output, of the size of the first input by default.

        `consumes` releases the inputs afterwards, as in `x = f(x)`. Node explains the arguments of
        the backward pass; by default the gradient of an input is as large as the input.
        """
        needs_grad = bool(weights) or any(tensor.requires_grad for tensor in inputs)
        is_recorded = self.is_recording and needs_grad
        if is_recorded and (saves or saves_output or saves_constant):
            self._count_saver(saves_output)
        temporary = self._allocate_if_any(temporary_bytes, temporary_component)
        numel = inputs[0].numel if numel is None else numel
        itemsize = inputs[0].itemsize if itemsize is None else itemsize
        output = self.memory.allocate(numel, itemsize, component, is_recorded)
        self.release(*temporary)
        if is_recorded:
            saved, offloaded = self.save((*saves, output) if saves_output else saves)
            sizes = [x.num_bytes for x in inputs] if gradient_bytes is None else gradient_bytes
            backward = (backward_bytes, temporary_component, kernel_bytes)
            node = Node(inputs, output, saved, offloaded, saves_constant, sizes, weights, *backward)
            self.nodes.append(node)
        if consumes:
            self.release(*inputs)
        return output

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `x + y`, as wide as the wider of both, and release both."""
        itemsize = max(x.itemsize, y.itemsize)
        # the gradient of a sum is that of each summand, but for a cast of the narrower one
        sizes = [ALIASES_UPSTREAM if z.itemsize == itemsize else z.num_bytes for z in (x, y)]
        return self.record(x, y, itemsize=itemsize, gradient_bytes=sizes, consumes=True)

    def cast(self, x: Tensor, itemsize: int, consumes: bool = False) -> Tensor:
        """Return `x.to(dtype)`: a new tensor, or x with one more reference."""
        if x.itemsize != itemsize:
            return self.record(x, itemsize=itemsize, consumes=consumes)
        if consumes:
            return x
        return self.retain(x)

    def save(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keep tensors for the backward pass; return (those on the device, those offloaded).

        A tensor that is saved again while its copy is in flight stays on the device this time.
        """
        if not self.offloads:
            for tensor in tensors:
                self.retain(tensor)
            return list(tensors), []
        saved, offloaded = [], []
        for tensor in tensors:
            self.retain(tensor)
            is_small = tensor.num_bytes < MIN_OFFLOADED_BYTES
            if is_small or tensor in self._in_flight:
                saved.append(tensor)
                continue
            offloaded.append(tensor)
            self._in_flight.append(tensor)
            if len(self._in_flight) > MAX_TENSORS_IN_FLIGHT:
                self.release(self._in_flight.popleft())
        return saved, offloaded

    def bring_back(self, offloaded: Sequence[Tensor]) -> list[Tensor]:
        """Wait for every copy to main memory; return copies on the device of these tensors."""
        self.release(*self._in_flight)
        self._in_flight.clear()
        return [self.memory.allocate(x.numel, x.itemsize, "activations") for x in offloaded]

    def pop_nodes(self) -> list[Node]:
        """Return the nodes recorded so far and forget them."""
        nodes = self.nodes
        self.nodes = []
        return nodes

    def backward(
        self, nodes: list[Node], output: Tensor, gradient: Tensor, target: Tensor
    ) -> Tensor | None:
        """Run nodes backward from the gradient of their output, which is released.

        Return the gradient of `target`, None if it needs none.
        """
        gradients = {output.id: gradient}
        for node in reversed(nodes):
            upstream = gradients.pop(node.output.id, None)
            input_gradients: list[tuple[int, Tensor]] = []
            if upstream is not None:
                restored = self.bring_back(node.offloaded) if node.offloaded else []
                input_gradients = self._run_backward(node, upstream)
                self.release(upstream, *restored)
            # autograd frees saved tensors as soon as their node has run
            self.release(*node.saved)
            for tensor_id, new in input_gradients:
                old = gradients.get(tensor_id)
                gradients[tensor_id] = new if old is None else self._sum(old, new)
        return gradients.get(target.id)

    def gradient_bytes_before_saved(self) -> int:
        """Return the bytes of gradients made before the backward pass first needs a saved tensor.

        At that point checkpointing recomputes the layer. The gradient of the output is not counted.
        """
        live: dict[int, int] = {}
        for node in reversed(self.nodes):
            if node.saved or node.saves_constant:
                break
            upstream_bytes = live.pop(node.output.id, 0)
            for tensor, num_bytes in zip(node.inputs, node.gradient_bytes, strict=True):
                if tensor.requires_grad and num_bytes == ALIASES_UPSTREAM:
                    live[tensor.id] = upstream_bytes
                    upstream_bytes = 0
                elif tensor.requires_grad:
                    live[tensor.id] = num_bytes
        return sum(live.values())

    def accumulate(self, weight: WeightGradient) -> None:
        """Make the gradient of a parameter: keep it if it is the first, add it in place if not."""
        gradient = self.memory.allocate(weight.num_bytes, 1, "gradients")
        self.memory.temporary(weight.temporary_bytes)
        if weight.is_partial:
            self._partial_gradients[weight.parameter] = gradient
            return
        partial = self._partial_gradients.pop(weight.parameter, None)
        if partial is not None:  # both parts are added in the buffer of the first
            self.release(gradient)
            gradient = partial
        kept = self.gradients if self.division is None else self._whole_gradients
        if kept.setdefault(weight.parameter, gradient) is gradient:
            return
        if self.deferred is None:
            self.release(gradient)
        else:
            self.deferred.append(gradient)

    def divide_gradients(self) -> list[Tensor]:
        """Send the other devices their parts of the gradients that are whole, and keep one.

        Return the buffer that was sent: it stays until the next one is. Source:
        foreach_reduce in torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py.
        """
        if not self.division or not self._whole_gradients:
            return []
        sizes = {name: each.num_bytes for name, each in self._whole_gradients.items()}
        total = sum(sizes.values())
        sent = self.memory.allocate(total, 1, "temporary")
        self.release(*self._whole_gradients.values())
        self._whole_gradients = {}
        share = self.division.width / self.division.num_parts
        received = [self.memory.allocate(total // self.division.num_parts, 1, "temporary")]
        if self.division.width != 1:
            received.append(self.memory.allocate(ceil(total * share), 1, "temporary"))
        self.release(*received)
        for name, size in sizes.items():
            if name not in self.gradients:
                self.gradients[name] = self.memory.allocate(ceil(size * share), 1, "gradients")
        return [sent]

    def clear_gradients(self) -> None:
        """Free all gradients (`optimizer.zero_grad(set_to_none=True)`)."""
        self.release(*self.gradients.values())
        self.gradients = {}

    def _count_saver(self, saves_output: bool) -> None:
        """Count an operation that saves; stop the recomputation at the last one that is needed."""
        self.num_savers += 1
        if self.num_savers == self.stop_after and not saves_output:
            self.memory.is_suppressed = True

    def _allocate_if_any(self, num_bytes: int, component: Component) -> list[Tensor]:
        if num_bytes:
            return [self.memory.allocate(num_bytes, 1, component)]
        return []

    def _run_backward(self, node: Node, upstream: Tensor) -> list[tuple[int, Tensor]]:
        """Run one node backward and return (id, gradient) of each input that needs one."""
        memory = self.memory
        temporary = self._allocate_if_any(node.backward_bytes, node.temporary_component)
        gradients = []
        for tensor, num_bytes in zip(node.inputs, node.gradient_bytes, strict=True):
            if not tensor.requires_grad:
                continue
            if num_bytes == ALIASES_UPSTREAM:
                gradient = memory.retain(upstream)
            else:
                gradient = memory.allocate(num_bytes, 1, "temporary")
            gradients.append((tensor.id, gradient))
        memory.temporary(node.kernel_bytes)
        for weight in node.weights:
            self.accumulate(weight)
        memory.release(*temporary)
        return gradients

    def _sum(self, old: Tensor, new: Tensor) -> Tensor:
        """Add two gradients of one tensor: in place, unless something else refers to the first."""
        if old.num_references == 1:
            self.release(new)
            return old
        total = self.memory.allocate(old.numel, old.itemsize, "temporary")
        self.release(old, new)
        return total
