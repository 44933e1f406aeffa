"""A run in miniature: load, optimizer steps of forward and backward passes, evaluation, save.

Plays the phases of a Program on a heap, layer by layer; every formula is that of the room it calls.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from core.memory.head import HEADS
from core.memory.heap import Heap, Tensor
from core.memory.layer import decoder_layer, norm
from core.memory.linear import ForwardPass
from core.memory.program import LayerKind, Program
from core.memory.resident import allocate_states, load, trainables
from core.memory.tape import Operation, Tape, WeightGradient

Phase = Literal["load", "forward", "backward", "optimizer_step", "eval", "save"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass
class _Activations:
    """What a forward pass leaves for the backward pass."""

    inputs: list[Tensor]
    """Ids, labels, masks, rotary tables."""
    boundaries: list[Tensor]
    """The hidden states in front of each layer, and those behind the last. Checkpointing holds all but those."""
    layers: list[list[Operation]]
    """The tape of each layer; empty under checkpointing, which records it again."""
    retained: list[list[Tensor]]
    """What the 8-bit linears of each layer kept all the same."""
    end: list[Operation]
    """The tape of the last norm and the head."""
    loss: Tensor


class Simulation:
    """One run of a program whose decoder layers are of the given kinds.

    The heap keeps peaks apart by phase and, within the forward and the backward pass, for `num_ends` layers at either
    end of the model: segments `forward`, `forward/0`, `forward/-1` and so on.
    """

    def __init__(self, program: Program, kinds: tuple[LayerKind, ...], num_ends: int = 2):
        self.program = program
        self.num_ends = num_ends
        self.kinds = kinds
        self.heap = Heap()
        self.tape = Tape(self.heap)
        self.trained = trainables(program, kinds)
        self._has_states = False
        self._workspaces: dict[str, Tensor] = {}
        self._outputs: list[Tensor] = []

    def play(self) -> "Simulation":
        """Load, one step with the optimizer's states in place (as every step but the first), evaluate, save."""
        self.load()
        self.heap.enter("optimizer_step")
        self._make_states()
        self.step()
        self.evaluate()
        self.heap.enter("save")
        return self

    def load(self) -> None:
        """Load the model."""
        self.heap.enter("load")
        load(self.program, self.kinds, self.heap)

    def step(self) -> None:
        """One optimizer step; the first makes the optimizer's states."""
        program, tape = self.program, self.tape
        if program.clears_gradients_first:
            tape.clear_gradients()
        for _ in range(min(program.accumulation_steps, 2)):  # the third finds what the second found
            self._backward(self._forward())
        self.heap.enter("optimizer_step")
        self._make_states()
        self._scratch_of_optimizer()
        if program.keeps_outputs == "until_step_ends":
            self._hold_outputs([])
        if not program.clears_gradients_first:
            tape.clear_gradients()

    def evaluate(self) -> None:
        """A forward pass without a graph, on a batch of the same size."""
        heap, tape, program = self.heap, self.tape, self.program
        heap.enter("eval")
        tape.is_recording = False
        run = ForwardPass(program, tape)
        inputs, x = self._inputs(), self._embedded()
        for index, kind in enumerate(self.kinds):
            x = decoder_layer(run, x, kind, f"layers.{index}")
        last = norm(run, x, "norm")
        loss, outputs = HEADS[program.head](run, last)
        run.end_autocast()
        heap.drop(last, loss, *([outputs] if outputs else []), *inputs)
        tape.is_recording = True

    # Forward

    def _forward(self) -> _Activations:
        """Embedding, layers, last norm, head."""
        program, heap, tape = self.program, self.heap, self.tape
        self._enter("forward")
        self._workspace("forward")
        run = ForwardPass(program, tape, is_checkpointed=program.checkpointing)
        inputs, x = self._inputs(), self._embedded()
        boundaries, layers, retained, outputs = [x], [], [], []
        for index, kind in enumerate(self.kinds):
            self._enter("forward", index)
            tape.is_recording = not program.checkpointing
            x = decoder_layer(run, heap.hold(x) if program.checkpointing else x, kind, f"layers.{index}")
            tape.is_recording = True
            x.requires_grad |= program.checkpointing
            boundaries.append(x)
            layers.append(tape.take())
            retained.append(run.retained)
            run.retained = []
            if program.uses_cache and not program.checkpointing:
                outputs.append(self._cached_keys_and_values())
        self._enter("forward")
        last = norm(run, x, "norm")
        loss, logits = HEADS[program.head](run, last)
        heap.drop(last)
        self._hold_outputs([*outputs, logits] if logits else outputs)
        run.end_autocast()
        return _Activations(inputs, boundaries, layers, retained, tape.take(), loss)

    def _inputs(self) -> list[Tensor]:
        """Ids, labels and attention mask as 64-bit numbers, cos and sin, and the masks [B, 1, T, T]."""
        program, heap = self.program, self.heap
        n, scores = program.num_tokens, program.rows * program.row_tokens**2
        table_bytes = program.row_tokens * program.shape.head_dim * program.residual_bytes
        sizes = [16 * n, 8 * n, table_bytes, table_bytes]
        masks = {kind.is_windowed for kind in self.kinds}
        if program.attention == "eager":
            sizes += [scores * program.residual_bytes] * len(masks)
        elif program.attention != "flash":
            sizes += [scores for is_windowed in masks if is_windowed or program.has_mask]
        return [heap.allocate(size, 1, "activations") for size in sizes]

    def _embedded(self) -> Tensor:
        """The hidden states in front of the first layer: they need a gradient if the embedding trains, or if
        checkpointing asks for one (enable_input_require_grads)."""
        program = self.program
        needs_gradient = program.trains_base or program.checkpointing
        numbers = program.num_tokens * program.shape.hidden_size
        return self.heap.allocate(numbers, program.residual_bytes, "activations", needs_gradient)

    def _cached_keys_and_values(self) -> Tensor:
        """What one layer adds to the cache."""
        program = self.program
        keys = program.num_tokens * program.shape.num_key_value_heads * program.shape.head_dim
        return self.heap.allocate(2 * keys, program.compute_bytes, "activations")

    # Backward

    def _backward(self, done: _Activations) -> None:
        """Head, last norm, layers from the last to the first, embedding."""
        program, heap, tape = self.program, self.heap, self.tape
        self._enter("backward")
        self._workspace("backward")
        seed = heap.allocate(1, 4, "temporary")
        gradient = tape.backward(done.end, done.loss, seed, done.boundaries[-1])
        heap.drop(done.loss)
        for index in reversed(range(len(self.kinds))):
            self._enter("backward", index)
            if gradient is not None:
                gradient = self._layer_backward(done, index, done.boundaries[index], gradient)
            heap.drop(*done.retained[index], *([done.boundaries[index]] if program.checkpointing else []))
        self._enter("backward")
        if program.trains_base:
            shape = program.shape
            tape.accumulate(WeightGradient("embedding", shape.vocab_size * shape.hidden_size * program.weight_bytes))
        heap.drop(*([gradient] if gradient else []), *done.inputs)

    def _layer_backward(self, done: _Activations, index: int, x: Tensor, gradient: Tensor) -> Tensor | None:
        """The gradient of a layer's input; under checkpointing its forward pass runs again first."""
        tape, operations = self.tape, done.layers[index]
        if not self.program.checkpointing:
            return tape.backward(operations, operations[-1].output, gradient, x)
        run = ForwardPass(self.program, tape)
        output = decoder_layer(run, self.heap.hold(x), self.kinds[index], f"layers.{index}")
        run.end_autocast()
        result = tape.backward(tape.take(), output, gradient, x)
        self.heap.drop(output)
        return result

    # Optimizer

    def _make_states(self) -> None:
        if not self._has_states:
            allocate_states(self.program, self.trained, self.heap)
        self._has_states = True

    def _scratch_of_optimizer(self) -> None:
        """The temporaries of the optimizer's kernels: lists as large as all that trains, or copies of one tensor."""
        optimizer, heap = self.program.optimizer, self.heap
        for _ in range(optimizer.copies_all):
            copies = [heap.allocate(trainable.num_bytes, 1, "temporary") for trainable in self.trained]
            heap.drop(*copies)
        if optimizer.float_copies_of_largest:
            largest = max(trainable.num_bytes // trainable.number_bytes for trainable in self.trained)
            heap.scratch(optimizer.float_copies_of_largest * 4 * largest)

    # Bookkeeping

    def _enter(self, phase: Phase, layer: int | None = None) -> None:
        """Name the part of the run: the phase, and for layers near either end which one, counted from that end."""
        if layer is None:
            self.heap.enter(phase)
        elif layer < self.num_ends:
            self.heap.enter(f"{phase}/{layer}")
        else:
            self.heap.enter(f"{phase}/{max(layer - len(self.kinds), -self.num_ends - 1)}")

    def _workspace(self, thread: str) -> None:
        """cuBLAS takes a workspace per thread at its first product, and keeps it."""
        if thread not in self._workspaces:
            self._workspaces[thread] = self.heap.allocate(self.program.workspace_bytes, 1, "temporary")

    def _hold_outputs(self, outputs: list[Tensor]) -> None:
        """`outputs = model(...)`: those of the last pass go, unless the program never holds any."""
        if self.program.keeps_outputs == "never":
            outputs, self._outputs = self._outputs, outputs
        self.heap.drop(*self._outputs)
        self._outputs = outputs
