"""Autograd: what operations allocate, save for the backward pass, and free again in that pass.

Sources: torch/csrc/autograd/engine.cpp (order of nodes), input_buffer.cpp (sums of gradients),
functions/accumulate_grad.h. Knows no model.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.memory.components import Component
from core.memory.simulator.device_memory import DeviceMemory, DeviceTensor

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


@dataclass(slots=True)
class Node:
    """One recorded operation."""

    inputs: tuple[DeviceTensor, ...]
    output: DeviceTensor
    saved: list[DeviceTensor]
    """Tensors that it keeps on the device until its backward pass."""
    offloaded: list[DeviceTensor]
    """Tensors that it keeps in main memory; they are copied back for its backward pass."""
    saves_constant: bool
    """True if its backward pass also reads a parameter or scalar, which takes no extra memory."""
    gradient_bytes: Sequence[int]
    """Bytes of the gradient of each input, or ALIASES_UPSTREAM."""
    weights: Sequence[WeightGradient]
    temporary_bytes: int
    """Bytes that its backward pass needs from beginning to end."""
    temporary_component: Component
    kernel_bytes: int
    """Bytes that its backward kernel needs once its results are allocated."""

    @property
    def needs_saved(self) -> bool:
        """True if its backward pass reads a saved tensor or a constant."""
        return bool(self.saved or self.offloaded or self.saves_constant)


class Offload:
    """Saved tensors on their way to main memory: the last few stay until their copy has arrived.

    Source: OffloadActivations in trl/models/activation_offloading.py. A tensor that is saved again
    while it is in flight stays on the device for that second use.
    """

    def __init__(self, memory: DeviceMemory):
        self.memory = memory
        self._in_flight: deque[DeviceTensor] = deque()

    def send(self, tensor: DeviceTensor) -> None:
        """Start to copy a tensor; once too many are in flight, wait for the oldest and free it."""
        self._in_flight.append(tensor)
        if len(self._in_flight) > MAX_TENSORS_IN_FLIGHT:
            self.memory.release(self._in_flight.popleft())

    def is_in_flight(self, tensor: DeviceTensor) -> bool:
        """Return True if this tensor is being copied."""
        return tensor in self._in_flight

    def finish(self) -> None:
        """Wait for every copy."""
        self.memory.release(*self._in_flight)
        self._in_flight.clear()


class AutogradGraph:
    """Records operations as they run forward, and runs them backward."""

    def __init__(self, memory: DeviceMemory, offload: Offload | None = None):
        self.memory = memory
        self.retain, self.release = memory.retain, memory.release
        self.offload = offload
        self.is_recording = True
        self.nodes: list[Node] = []
        self.num_savers = 0
        """Number of operations so far that saved something."""
        self.stop_after: int | None = None
        """Number of savers after which a recomputed layer stops, since checkpointing needs nothing
        more (_StopRecomputationError in torch/utils/checkpoint.py). None: runs to its end."""
        self.gradients: dict[str, DeviceTensor] = {}
        """Gradient of each parameter by its name."""
        self.deferred: list[DeviceTensor] | None = None
        """Gradients to be accumulated when the backward pass of a compiled layer ends. None: each
        is accumulated at once, as without torch.compile."""
        self._partial_gradients: dict[str, DeviceTensor] = {}

    def record(
        self,
        *inputs: DeviceTensor,
        numel: int | None = None,
        itemsize: int | None = None,
        component: Component = "activations",
        consumes: bool = False,
        saves: Sequence[DeviceTensor] = (),
        saves_output: bool = False,
        saves_constant: bool = False,
        weights: Sequence[WeightGradient] = (),
        gradient_bytes: Sequence[int] | None = None,
        temporary_bytes: int = 0,
        backward_temporary_bytes: int = 0,
        backward_kernel_bytes: int = 0,
        temporary_component: Component = "temporary",
    ) -> DeviceTensor:
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
            backward = (backward_temporary_bytes, temporary_component, backward_kernel_bytes)
            node = Node(inputs, output, saved, offloaded, saves_constant, sizes, weights, *backward)
            self.nodes.append(node)
        if consumes:
            self.release(*inputs)
        return output

    def add(self, x: DeviceTensor, y: DeviceTensor) -> DeviceTensor:
        """Return `x + y`, as wide as the wider of both, and release both."""
        itemsize = max(x.itemsize, y.itemsize)
        # the gradient of a sum is that of each summand, but for a cast of the narrower one
        sizes = [ALIASES_UPSTREAM if z.itemsize == itemsize else z.num_bytes for z in (x, y)]
        return self.record(x, y, itemsize=itemsize, gradient_bytes=sizes, consumes=True)

    def cast(self, x: DeviceTensor, itemsize: int, consumes: bool = False) -> DeviceTensor:
        """Return `x.to(dtype)`: a new tensor, or x with one more reference."""
        if x.itemsize != itemsize:
            return self.record(x, itemsize=itemsize, consumes=consumes)
        return x if consumes else self.retain(x)

    def save(
        self, tensors: Sequence[DeviceTensor]
    ) -> tuple[list[DeviceTensor], list[DeviceTensor]]:
        """Keep tensors for the backward pass; return (those on the device, those offloaded)."""
        offload = self.offload
        if offload is None:
            return [self.retain(tensor) for tensor in tensors], []
        saved, offloaded = [], []
        for tensor in tensors:
            self.retain(tensor)
            if tensor.num_bytes < MIN_OFFLOADED_BYTES or offload.is_in_flight(tensor):
                saved.append(tensor)
            else:
                offload.send(tensor)
                offloaded.append(tensor)
        return saved, offloaded

    def bring_back(self, offloaded: Sequence[DeviceTensor]) -> list[DeviceTensor]:
        """Return copies on the device of tensors that were sent to main memory."""
        if self.offload is not None:
            self.offload.finish()
        return [self.memory.allocate(x.numel, x.itemsize, "activations") for x in offloaded]

    def pop_nodes(self) -> list[Node]:
        """Return the nodes recorded so far and forget them."""
        nodes = self.nodes
        self.nodes = []
        return nodes

    def backward(
        self, nodes: list[Node], output: DeviceTensor, gradient: DeviceTensor, target: DeviceTensor
    ) -> DeviceTensor | None:
        """Run nodes backward from the gradient of their output, which is released.

        Return the gradient of `target`, None if it needs none.
        """
        gradients = {output.id: gradient}
        for node in reversed(nodes):
            upstream = gradients.pop(node.output.id, None)
            input_gradients: list[tuple[int, DeviceTensor]] = []
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
        """Return the bytes of gradients allocated before the backward pass first needs a saved tensor.

        At that point checkpointing recomputes the layer. The gradient of the output is not counted.
        """
        live: dict[int, int] = {}
        for node in reversed(self.nodes):
            if node.needs_saved:
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
        if self.gradients.setdefault(weight.parameter, gradient) is gradient:
            return
        if self.deferred is None:
            self.release(gradient)
        else:
            self.deferred.append(gradient)

    def accumulate_deferred(self) -> None:
        """Add the deferred gradients, which frees them."""
        self.release(*(self.deferred or ()))
        self.deferred = None

    def clear_gradients(self) -> None:
        """Free all gradients (`optimizer.zero_grad(set_to_none=True)`)."""
        self.release(*self.gradients.values())
        self.gradients = {}

    def _count_saver(self, saves_output: bool) -> None:
        """Count an operation that saves; stop the recomputation at the last one that is needed."""
        self.num_savers += 1
        if self.num_savers == self.stop_after and not saves_output:
            self.memory.is_suppressed = True

    def _allocate_if_any(self, num_bytes: int, component: Component) -> list[DeviceTensor]:
        return [self.memory.allocate(num_bytes, 1, component)] if num_bytes else []

    def _run_backward(self, node: Node, upstream: DeviceTensor) -> list[tuple[int, DeviceTensor]]:
        """Run one node backward and return (id, gradient) of each input that needs one."""
        memory = self.memory
        temporary = self._allocate_if_any(node.temporary_bytes, node.temporary_component)
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

    def _sum(self, old: DeviceTensor, new: DeviceTensor) -> DeviceTensor:
        """Add two gradients of one tensor: in place, unless something else refers to the first."""
        if old.num_references == 1:
            self.release(new)
            return old
        total = self.memory.allocate(old.numel, old.itemsize, "temporary")
        self.release(old, new)
        return total
