"""The autograd tape: what an operation allocates, what it keeps for the backward pass, and what the backward pass
allocates and releases in turn. Knows nothing of models.

Sources: torch/csrc/autograd/engine.cpp (order), input_buffer.cpp (sums of gradients), functions/accumulate_grad.h.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.memory.simulator.device_memory import Heap, Kind, Tensor

PASSED_ON: Final = -1
"""In place of a gradient's bytes: it is the very gradient of the output, as in an addition; no new tensor."""
LEAST_OFFLOADED_BYTES: Final = 1024
MOST_TENSORS_UNDER_WAY: Final = 5
"""min_offload_size and max_fwd_stash_size of trl/models/activation_offloading.py."""


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
    away: list[Tensor]
    """What it saved in main memory instead; it comes back for the backward pass."""
    needs_saved: bool
    """Its backward reads something that was saved, be it a constant."""


class Offload:
    """Saved tensors on their way to main memory: the last few stay on the device until they have arrived.

    Source: OffloadActivations in trl/models/activation_offloading.py. A tensor that is saved again while it is on its
    way stays on the device for that second use.
    """

    def __init__(self, heap: Heap):
        self.heap = heap
        self._sent: deque[Tensor] = deque()

    def send(self, tensor: Tensor) -> None:
        """Begin to copy a tensor that is held for this; the oldest of those under way has arrived."""
        self._sent.append(tensor)
        if len(self._sent) > MOST_TENSORS_UNDER_WAY:
            self.heap.drop(self._sent.popleft())

    def is_on_its_way(self, tensor: Tensor) -> bool:
        """True if this very tensor is being copied."""
        return tensor in self._sent

    def finish(self) -> None:
        """Everything has arrived."""
        self.heap.drop(*self._sent)
        self._sent.clear()


class Tape:
    """Records operations while they run, and runs them backwards."""

    def __init__(self, heap: Heap, offload: Offload | None = None):
        self.heap = heap
        self.hold, self.drop = heap.hold, heap.drop
        self.offload = offload
        self.is_recording = True
        self.operations: list[Operation] = []
        self.num_savers = 0
        """Operations that have saved anything."""
        self.last_saver: int | None = None
        """What runs again ends where this many operations have saved: nothing more is needed (_StopRecomputationError
        in torch/utils/checkpoint.py)."""
        self.gradients: dict[str, Tensor] = {}
        """Gradients of the parameters, by the name of the parameter."""
        self.late: list[Tensor] | None = None
        """Gradients that are added to others once a compiled layer has made all of its own; None: each at once."""
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
        saves_constant: bool = False,
        weights: Sequence[WeightGradient] = (),
        gradient_bytes: Sequence[int] | None = None,
        scratch_bytes: int = 0,
        backward_scratch_bytes: int = 0,
        backward_kernel_bytes: int = 0,
        scratch_kind: Kind = "temporary",
    ) -> Tensor:
        """Run one operation and return its output, of the size of the first input unless said otherwise.

        `consumes` drops the inputs afterwards, as in `x = f(x)`. The backward pass needs what `saves` names, makes the
        gradients of `weights`, and for each input one of `gradient_bytes` (by default the input's own size);
        `saves_constant` says that it also needs a parameter or a number, which is there anyway. Scratch lives while
        the operation runs, or its backward; what a backward kernel needs comes after its results.
        """
        heap, first = self.heap, inputs[0]
        is_recorded = self.is_recording and (
            bool(weights) or any(tensor.requires_grad for tensor in inputs)
        )
        needs_saved = bool(saves) or saves_output or saves_constant
        if is_recorded and needs_saved:
            self.num_savers += 1
            heap.is_closed |= self.num_savers == self.last_saver and not saves_output
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
            saved, away = self.save((*saves, output) if saves_output else saves)
            sizes = (
                [tensor.num_bytes for tensor in inputs]
                if gradient_bytes is None
                else gradient_bytes
            )
            backward = sizes, weights, backward_scratch_bytes, scratch_kind, backward_kernel_bytes
            self.operations.append(Operation(inputs, output, saved, *backward, away, needs_saved))
        if consumes:
            heap.drop(*inputs)
        return output

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`, as wide as the wider; both are dropped."""
        wide = max(x.number_bytes, y.number_bytes)
        gradient_bytes = [
            PASSED_ON if part.number_bytes == wide else part.num_bytes for part in (x, y)
        ]
        return self.run(x, y, number_bytes=wide, gradient_bytes=gradient_bytes, consumes=True)

    def cast(self, x: Tensor, number_bytes: int, consumes: bool = False) -> Tensor:
        """`x.to(dtype)`: a new tensor, or the same one held once more."""
        if x.number_bytes != number_bytes:
            return self.run(x, number_bytes=number_bytes, consumes=consumes)
        return x if consumes else self.hold(x)

    def save(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What an operation keeps for its backward pass: (held on the device, sent to main memory)."""
        if self.offload is None:
            return [self.hold(tensor) for tensor in tensors], []
        kept: list[Tensor] = []
        away: list[Tensor] = []
        for tensor in tensors:
            stays = tensor.num_bytes < LEAST_OFFLOADED_BYTES or self.offload.is_on_its_way(tensor)
            if stays:
                kept.append(self.hold(tensor))
            else:
                self.offload.send(self.hold(tensor))
                away.append(tensor)
        return kept, away

    def bring_back(self, away: Sequence[Tensor]) -> list[Tensor]:
        """Copies on the device of what was sent to main memory."""
        if self.offload is not None:
            self.offload.finish()
        return [
            self.heap.allocate(tensor.numbers, tensor.number_bytes, "activations")
            for tensor in away
        ]

    def take(self) -> list[Operation]:
        """The operations recorded so far; the tape is empty afterwards."""
        taken, self.operations = self.operations, []
        return taken

    def backward(
        self, operations: list[Operation], output: Tensor, gradient: Tensor, target: Tensor
    ) -> Tensor | None:
        """Run recorded operations backwards from the gradient of their output, which is dropped.

        Returns the gradient of `target`; None if it needs none.
        """
        found = {output.id: gradient}
        for operation in reversed(operations):
            upstream = found.pop(operation.output.id, None)
            made: list[tuple[int, Tensor]] = []
            if upstream is not None:
                returned = self.bring_back(operation.away) if operation.away else []
                made = self._run_backward(operation, upstream)
                self.drop(upstream, *returned)
            self.drop(*operation.saved)
            for tensor_id, new in made:
                found[tensor_id] = self._sum(found[tensor_id], new) if tensor_id in found else new
        return found.get(target.id)

    def bytes_before_saved(self) -> int:
        """Gradients that are there, the output's own aside, when a backward pass over the recorded operations first
        needs what was saved."""
        live: dict[int, int] = {}
        for operation in reversed(self.operations):
            if operation.needs_saved:
                break
            passed_on = live.pop(operation.output.id, 0)
            for tensor, num_bytes in zip(operation.inputs, operation.gradient_bytes, strict=True):
                if tensor.requires_grad and num_bytes == PASSED_ON:
                    live[tensor.id], passed_on = passed_on, 0
                elif tensor.requires_grad:
                    live[tensor.id] = num_bytes
        return sum(live.values())

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
        if self.gradients.setdefault(weight.parameter, gradient) is gradient:
            return
        if self.late is None:
            self.drop(gradient)
        else:
            self.late.append(gradient)

    def clear_gradients(self) -> None:
        """`optimizer.zero_grad(set_to_none=True)`."""
        self.drop(*self.gradients.values())
        self.gradients = {}

    def _run_backward(self, operation: Operation, upstream: Tensor) -> list[tuple[int, Tensor]]:
        """The gradients of an operation's inputs, by the id of the input."""
        heap = self.heap
        scratch = (
            heap.allocate(operation.scratch_bytes, 1, operation.scratch_kind)
            if operation.scratch_bytes
            else None
        )
        made = [
            (
                tensor.id,
                heap.hold(upstream)
                if num_bytes == PASSED_ON
                else heap.allocate(num_bytes, 1, "temporary"),
            )
            for tensor, num_bytes in zip(operation.inputs, operation.gradient_bytes, strict=True)
            if tensor.requires_grad
        ]
        heap.scratch(operation.kernel_bytes)
        for weight in operation.weights:
            self.accumulate(weight)
        if scratch is not None:
            heap.drop(scratch)
        return made

    def _sum(self, old: Tensor, new: Tensor) -> Tensor:
        """Two gradients of one tensor: into the first, unless something else still holds it."""
        if old.holders == 1:
            self.drop(new)
            return old
        total = self.heap.allocate(old.numbers, old.number_bytes, "temporary")
        self.drop(old, new)
        return total
