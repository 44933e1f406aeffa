"""The autograd tape: what an operation allocates, what it keeps for the backward pass, and what the backward pass
allocates and releases in turn. Knows nothing of models.

Sources: torch/csrc/autograd/engine.cpp (order), input_buffer.cpp (sums of gradients), functions/accumulate_grad.h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.memory.heap import Heap, Kind, Tensor

PASSED_ON: Final = -1
"""In place of a gradient's bytes: it is the very gradient of the output, as in an addition; no new tensor."""


@dataclass(frozen=True, slots=True)
class WeightGradient:
    """The gradient of one parameter that an operation's backward pass makes."""

    parameter: str
    num_bytes: int
    scratch_bytes: int = 0
    """What is needed while it is made, such as the same gradient in the precision of the math."""
    is_partial: bool = False
    """Another operation uses the parameter too: this part waits for the other before it is accumulated."""


@dataclass(slots=True)
class Operation:
    """One recorded operation."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    saved: list[Tensor]
    gradient_bytes: Sequence[int]
    """Of each input: bytes of its gradient, or PASSED_ON."""
    weights: Sequence[WeightGradient]
    scratch_bytes: int
    """What its backward needs from its beginning to its end."""
    scratch_kind: Kind
    kernel_bytes: int
    """What its backward kernel needs once its results are allocated."""


class Tape:
    """Records operations while they run, and runs them backwards."""

    def __init__(self, heap: Heap):
        self.heap = heap
        self.hold, self.drop = heap.hold, heap.drop
        self.is_recording = True
        self.operations: list[Operation] = []
        self.gradients: dict[str, Tensor] = {}
        """Gradients of the parameters, by the name of the parameter."""
        self._partial: dict[str, Tensor] = {}

    def run(
        self,
        *inputs: Tensor,
        numbers: int | None = None,
        number_bytes: int | None = None,
        kind: Kind = "activations",
        consumes: bool = False,
        saves: Sequence[Tensor] = (),
        saves_output: bool = False,
        weights: Sequence[WeightGradient] = (),
        gradient_bytes: Sequence[int] | None = None,
        scratch_bytes: int = 0,
        backward_scratch_bytes: int = 0,
        backward_kernel_bytes: int = 0,
        scratch_kind: Kind = "temporary",
    ) -> Tensor:
        """Run one operation and return its output, of the size of the first input unless said otherwise.

        `consumes` drops the inputs afterwards, as in `x = f(x)`. The backward pass needs what `saves` names, makes the
        gradients of `weights`, and for each input one of `gradient_bytes` (by default the input's own size). Scratch
        lives while the operation runs, or its backward; what a backward kernel needs comes after its results.
        """
        heap, first = self.heap, inputs[0]
        is_recorded = self.is_recording and (bool(weights) or any(tensor.requires_grad for tensor in inputs))
        scratch = heap.allocate(scratch_bytes, 1, scratch_kind) if scratch_bytes else None
        output = heap.allocate(
            first.numbers if numbers is None else numbers,
            first.number_bytes if number_bytes is None else number_bytes,
            kind,
            is_recorded,
        )
        if scratch is not None:
            heap.drop(scratch)
        if is_recorded:
            saved = [heap.hold(tensor) for tensor in (*saves, output)] if saves_output else list(map(heap.hold, saves))
            sizes = [tensor.num_bytes for tensor in inputs] if gradient_bytes is None else gradient_bytes
            backward = sizes, weights, backward_scratch_bytes, scratch_kind, backward_kernel_bytes
            self.operations.append(Operation(inputs, output, saved, *backward))
        if consumes:
            heap.drop(*inputs)
        return output

    def cast(self, x: Tensor, number_bytes: int, consumes: bool = False) -> Tensor:
        """`x.to(dtype)`: a new tensor, or the same one held once more."""
        if x.number_bytes != number_bytes:
            return self.run(x, number_bytes=number_bytes, consumes=consumes)
        return x if consumes else self.hold(x)

    def take(self) -> list[Operation]:
        """The operations recorded so far; the tape is empty afterwards."""
        taken, self.operations = self.operations, []
        return taken

    def backward(self, operations: list[Operation], output: Tensor, gradient: Tensor, target: Tensor) -> Tensor | None:
        """Run recorded operations backwards from the gradient of their output, which is dropped.

        Returns the gradient of `target`; None if it needs none.
        """
        found = {output.id: gradient}
        for operation in reversed(operations):
            upstream = found.pop(operation.output.id, None)
            if upstream is not None:
                self._run_backward(operation, upstream, found)
                self.drop(upstream)
            self.drop(*operation.saved)
        return found.get(target.id)

    def accumulate(self, weight: WeightGradient) -> None:
        """Make the gradient of a parameter: kept if it is the first, added in place otherwise."""
        gradient = self.heap.allocate(weight.num_bytes, 1, "gradients")
        self.heap.scratch(weight.scratch_bytes)
        if weight.is_partial:
            self._partial[weight.parameter] = gradient
            return
        if waiting := self._partial.pop(weight.parameter, None):
            self.drop(gradient)
            gradient = waiting
        if self.gradients.setdefault(weight.parameter, gradient) is not gradient:
            self.drop(gradient)

    def clear_gradients(self) -> None:
        """`optimizer.zero_grad(set_to_none=True)`."""
        self.drop(*self.gradients.values())
        self.gradients = {}

    def _run_backward(self, operation: Operation, upstream: Tensor, found: dict[int, Tensor]) -> None:
        heap = self.heap
        scratch = heap.allocate(operation.scratch_bytes, 1, operation.scratch_kind) if operation.scratch_bytes else None
        made = [
            (tensor.id, heap.hold(upstream) if num_bytes == PASSED_ON else heap.allocate(num_bytes, 1, "temporary"))
            for tensor, num_bytes in zip(operation.inputs, operation.gradient_bytes, strict=True)
            if tensor.requires_grad
        ]
        heap.scratch(operation.kernel_bytes)
        for weight in operation.weights:
            self.accumulate(weight)
        if scratch is not None:
            heap.drop(scratch)
        for tensor_id, new in made:
            found[tensor_id] = self._sum(found[tensor_id], new) if tensor_id in found else new

    def _sum(self, old: Tensor, new: Tensor) -> Tensor:
        """Two gradients of one tensor: into the first, unless something else still holds it."""
        if old.holders == 1:
            self.drop(new)
            return old
        total = self.heap.allocate(old.numbers, old.number_bytes, "temporary")
        self.drop(old, new)
        return total
