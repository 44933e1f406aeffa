"""A run in miniature: load, optimizer steps of forward and backward passes, evaluation, save.

Plays the phases of a Program on a heap, layer by layer; every formula is that of the room it calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

from core.memory.ops.forward import embedded, inputs, run_without_graph, unscaled
from core.memory.ops.generation import generate
from core.memory.ops.head import HEADS
from core.memory.ops.layer import decoder_layer, norm
from core.memory.ops.linear import Again, ForwardPass
from core.memory.program.program import Generation, LayerKind, Moment, Program
from core.memory.resident import all_trainables, allocate_states, load
from core.memory.simulator.autograd import Offload, Operation, Tape, WeightGradient
from core.memory.simulator.device_memory import Heap, Tensor

Phase = Literal["load", "forward", "backward", "optimizer_step", "eval", "save", "generation"]
"""The last only where answers are drawn."""
PHASES: tuple[Phase, ...] = get_args(Phase)
EMBEDDING_ROWS_WITHOUT_SORTING = 3072
SORTING_BYTES = 6 * 8
"""Above so many tokens the rows of an embedding's gradient are sorted by word, with six 64-bit lists, and summed in
float32 (embedding_dense_backward_cuda in aten/src/ATen/native/cuda/Embedding.cu, EmbeddingBackwardKernel.cu)."""


@dataclass
class _Layer:
    """What the forward pass of a layer leaves for its backward pass."""

    x: Tensor
    """The hidden states in front of it."""
    output: Tensor
    tape: list[Operation]
    """Empty if it is recomputed."""
    held: list[Tensor]
    """Its input, if it is recomputed."""
    kept: list[Tensor]
    """Of a compiled layer that is recomputed in part, what it keeps besides."""
    away: list[Tensor]
    """Its input, if that waits in main memory."""


@dataclass(frozen=True)
class _Recorded:
    """What the forward pass of a layer records."""

    num_savers: int
    """Operations that save anything."""
    made_before_bytes: int
    """Gradients that its backward pass makes before it asks for what they saved, whereupon the layer runs again."""
    saved_bytes: int
    """All that they save, besides the layer's input."""
    remade_bytes: int
    """What of that a compiled layer makes anew without a product."""


@dataclass
class _Activations:
    """What a forward pass leaves for the backward pass."""

    program: Program
    model: str
    inputs: list[Tensor]
    layers: list[_Layer]
    end: list[Operation]
    """The tape of the last norm and the head."""
    loss: Tensor
    retained: list[Tensor]
    """What 8-bit linears kept on their own."""


class Simulation:
    """One run of a program whose decoder layers are of the given kinds.

    The heap keeps peaks apart by phase and, within the forward and the backward pass, for `num_ends` layers at either
    end of every section of the model: segments `forward`, `forward/0/0`, `forward/0/-1` and so on.
    """

    def __init__(self, program: Program, kinds: tuple[LayerKind, ...], num_ends: int = 2):
        self.program = program
        self.kinds = kinds
        self.heap = Heap()
        self.tape = Tape(self.heap, Offload(self.heap) if program.offloads_activations else None)
        self.trained = all_trainables(program, kinds)
        self._positions = positions(kinds, num_ends)
        self._has_states = False
        self._workspaces: dict[str, Tensor] = {}
        self._outputs: list[Tensor] = []
        self._recorded: dict[tuple[Program, LayerKind], _Recorded] = {}

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
        """Load the model, and those that are kept beside it."""
        self.heap.enter("load")
        load(self.program, self.kinds, self.heap)

    def step(self) -> None:
        """One optimizer step; the first makes the optimizer's states."""
        program, tape = self.program, self.tape
        if program.clears_gradients_first:
            tape.clear_gradients()
        self._generate(program.generation)
        for _ in range(min(program.accumulation_steps, 2)):  # the third finds what the second found
            self._micro_step()
        self.heap.enter("optimizer_step")
        self._make_states()
        self._scratch_of_optimizer()
        if program.keeps_outputs == "until_step_ends":
            self._hold_outputs([])
        if not program.clears_gradients_first:
            tape.clear_gradients()

    def evaluate(self) -> None:
        """A forward pass without a graph, on a batch of the same size, and what the loss asks for besides."""
        self.heap.enter("eval")
        run_without_graph(self.program, self.tape)
        self._ask("before", "after", "generation")

    def _micro_step(self) -> None:
        """Forward and backward of one micro-batch, of every model that trains."""
        self._enter("forward")
        self._workspace("forward")
        self._ask("before")
        trained = {f"{each.kind}.": each.program for each in self.program.companions if each.trains}
        done = [
            self._forward(program, model)
            for model, program in {"": self.program, **trained}.items()
        ]
        self._enter("forward")
        self._ask("after")
        self._enter("backward")
        self._workspace("backward")
        for activations in reversed(done):
            self._backward(activations)

    def _ask(self, *moments: Moment) -> None:
        """The passes without a graph at these moments."""
        for each in self.program.passes:
            if each.moment in moments:
                run_without_graph(each.program, self.tape)

    def _generate(self, drawn: Generation | None) -> None:
        """Draw answers and judge them."""
        if drawn:
            generate(self.program, drawn, self.kinds, self.tape)
            self.heap.enter("generation")
            self._ask("generation")

    # Forward

    def _forward(self, program: Program, model: str) -> _Activations:
        """Embedding, layers, last norm, head."""
        heap, tape = self.heap, self.tape
        run = ForwardPass(program, tape, model=model, retained=[])
        given, x = (
            inputs(program, self.kinds, heap) + unscaled(program, heap),
            embedded(program, heap),
        )
        first, layers, outputs = heap.hold(x), [], []
        for index, kind in enumerate(self.kinds):
            self._enter("forward", index)
            layer = self._layer_forward(run, x, kind, f"{model}layers.{index}")
            layers.append(layer)
            x = layer.output
            if program.uses_cache and not kind.is_checkpointed:
                outputs.append(self._cached_keys_and_values())
        self._enter("forward")
        run.trains = program.trains_last_norm
        last = norm(run, x, f"{model}norm")
        heap.drop(first)
        run.trains = program.trains_head
        loss, logits = HEADS[program.head](run, last)
        self._hold_outputs([*outputs, logits] if logits else outputs)
        run.end_autocast()
        return _Activations(program, model, given, layers, tape.take(), loss, run.retained or [])

    def _layer_forward(self, run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> _Layer:
        """One layer; a checkpointed one holds its input and records nothing."""
        tape = self.tape
        needs_gradient = kind.trains or run.program.lora is not None or x.requires_grad
        is_recomputed = kind.is_checkpointed and needs_gradient
        held, away = tape.save([x]) if is_recomputed else ([], [])
        run.trains, tape.is_recording = kind.trains, not kind.is_checkpointed
        output = decoder_layer(run, x, kind, name)
        tape.is_recording = True
        output.requires_grad |= is_recomputed
        kept = (
            [self._kept_in_part(run.program, kind)]
            if is_recomputed and run.program.recomputes_in_part
            else []
        )
        return _Layer(x, output, tape.take(), held, kept, away)

    def _kept_in_part(self, program: Program, kind: LayerKind) -> Tensor:
        """What a compiled layer keeps besides its input, as one tensor."""
        aside = self._recorded_aside(program, kind)
        products_bytes, allowed_bytes = (
            aside.saved_bytes - aside.remade_bytes,
            program.kept_share * aside.saved_bytes,
        )
        num_bytes = (
            products_bytes if self._again(program, kind) == "pointwise" else int(allowed_bytes)
        )
        return self.heap.allocate(num_bytes, 1, "activations")

    def _again(self, program: Program, kind: LayerKind) -> Again:
        """What a layer computes again. A budget that allows for all but what is no product leaves products alone
        (choose_saved_values_set in torch/_functorch/partitioners.py)."""
        if not program.recomputes_in_part:
            return "nothing"
        aside = self._recorded_aside(program, kind)
        is_enough = aside.saved_bytes - aside.remade_bytes < program.kept_share * aside.saved_bytes
        return "pointwise" if is_enough else "products"

    def _cached_keys_and_values(self) -> Tensor:
        """What one layer adds to the cache."""
        program = self.program
        keys = program.num_tokens * program.shape.num_key_value_heads * program.shape.head_dim
        return self.heap.allocate(2 * keys, program.compute_bytes, "activations")

    # Backward

    def _backward(self, done: _Activations) -> None:
        """Head, last norm, layers from the last to the first, embedding."""
        program, heap, tape = done.program, self.heap, self.tape
        self._enter("backward")
        seed = heap.allocate(1, 4, "temporary")
        gradient = tape.backward(done.end, done.loss, seed, done.layers[-1].output)
        heap.drop(done.loss)
        for index in reversed(range(len(self.kinds))):
            self._enter("backward", index)
            layer = done.layers[index]
            if gradient is not None:
                tape.late = [] if program.compiles_layers else None
                gradient = self._layer_backward(done, index, gradient)
                heap.drop(*(tape.late or []))
                tape.late = None
            heap.drop(*layer.held)
        self._enter("backward")
        if program.trains_embedding:
            self._embedding_backward(done)
        heap.drop(*([gradient] if gradient else []), *done.inputs, *done.retained)

    def _layer_backward(self, done: _Activations, index: int, gradient: Tensor) -> Tensor | None:
        """The gradient of a layer's input; a checkpointed one runs again first."""
        tape, layer, kind = self.tape, done.layers[index], self.kinds[index]
        if not kind.is_checkpointed:
            return tape.backward(layer.tape, layer.output, gradient, layer.x)
        self.heap.drop(*layer.kept)  # what it kept and what it computes again are all that it saves
        returned = tape.bring_back(layer.away)
        offload, tape.offload = tape.offload, None  # what is computed again is used at once
        run = ForwardPass(
            done.program, tape, trains=kind.trains, again=self._again(done.program, kind)
        )
        x = returned[0] if returned else layer.x
        x.requires_grad = layer.x.requires_grad
        aside = self._recorded_aside(done.program, kind)
        tape.num_savers, tape.last_saver = 0, aside.num_savers
        made_before = self.heap.allocate(aside.made_before_bytes, 1, "temporary")
        output = decoder_layer(run, self.heap.hold(x), kind, f"{done.model}layers.{index}")
        self.heap.is_closed, tape.last_saver = False, None
        run.end_autocast()
        self.heap.drop(output, made_before)
        result = tape.backward(tape.take(), output, gradient, x)
        self.heap.drop(*returned)
        tape.offload = offload
        return result

    def _recorded_aside(self, program: Program, kind: LayerKind) -> _Recorded:
        """What a layer that runs again would record, counted aside."""
        key = program, kind
        if key not in self._recorded:
            tape = Tape(Heap())
            tape.heap.enter("aside")
            run = ForwardPass(program, tape, trains=kind.trains)
            x = embedded(program, tape.heap)
            x.requires_grad = True
            decoder_layer(run, x, kind, "aside")
            saved = {
                tensor.id: tensor for operation in tape.operations for tensor in operation.saved
            }
            saved.pop(x.id, None)
            self._recorded[key] = _Recorded(
                num_savers=tape.num_savers,
                made_before_bytes=tape.bytes_before_saved(),
                saved_bytes=sum(tensor.num_bytes for tensor in saved.values()),
                remade_bytes=sum(tensor.num_bytes for tensor in saved.values() if tensor.is_remade),
            )
        return self._recorded[key]

    def _embedding_backward(self, done: _Activations) -> None:
        """The gradient of the embedding, or of the copy of it that trains."""
        program, shape = done.program, done.program.shape
        num_bytes = shape.vocab_size * shape.hidden_size * program.whole_module_bytes
        is_sorted = program.num_tokens > EMBEDDING_ROWS_WITHOUT_SORTING and not program.on_cpu
        scratch_bytes = (
            program.num_tokens * (SORTING_BYTES + 4 * shape.hidden_size) if is_sorted else 0
        )
        self.tape.accumulate(WeightGradient(f"{done.model}embedding", num_bytes, scratch_bytes))

    # Optimizer

    def _make_states(self) -> None:
        if not self._has_states:
            allocate_states(self.program, self.trained, self.heap)
        self._has_states = True

    def _scratch_of_optimizer(self) -> None:
        """The temporaries of the optimizer's kernels: lists as large as all that trains, or copies of one tensor."""
        optimizer, heap = self.program.optimizer, self.heap
        for _ in range(optimizer.copies_all):
            copies = [
                heap.allocate(trainable.num_bytes, 1, "temporary") for trainable in self.trained
            ]
            heap.drop(*copies)
        worked_on = [
            tensor
            for tensor in self.trained
            if tensor.is_matrix_of_layer or not optimizer.projection_rank
        ]
        if optimizer.float_copies_of_largest and worked_on:
            largest = max(tensor.num_bytes // tensor.number_bytes for tensor in worked_on)
            heap.scratch(optimizer.float_copies_of_largest * 4 * largest)

    # Bookkeeping

    def _enter(self, phase: Phase, layer: int | None = None) -> None:
        """Name the part of the run: the phase, and for layers near the end of a section which one."""
        if layer is None:
            self.heap.enter(phase)
        else:
            self.heap.enter(f"{phase}/{self._positions[layer]}", f"{phase}, layer {layer + 1}")

    def _workspace(self, thread: str) -> None:
        """cuBLAS takes a workspace per thread at its first product, and keeps it."""
        if thread not in self._workspaces:
            self._workspaces[thread] = self.heap.allocate(
                self.program.workspace_bytes, 1, "temporary"
            )

    def _hold_outputs(self, outputs: list[Tensor]) -> None:
        """`outputs = model(...)`: those of the last pass go, unless the program never holds any."""
        if self.program.keeps_outputs == "never":
            outputs, self._outputs = self._outputs, outputs
        self.heap.drop(*self._outputs)
        self._outputs = outputs


def sections(kinds: Sequence[LayerKind]) -> list[tuple[LayerKind, ...]]:
    """The frozen layers in front, and those that train; one of the two, most often."""
    return [tuple(found) for _, found in groupby(kinds, key=lambda kind: kind.trains)]


def positions(kinds: Sequence[LayerKind], num_ends: int) -> list[str]:
    """Where each layer stands: section/index from the nearer end; all that are far from both ends share one place."""
    return [
        f"{number}/{index if index < num_ends else max(index - len(section), -num_ends - 1)}"
        for number, section in enumerate(sections(kinds))
        for index in range(len(section))
    ]
