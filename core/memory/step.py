"""Simulation of a run in miniature: load, optimizer steps, evaluation, save; layer by layer.

Contains no formulas for operations; those are in ops/.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Literal, get_args

from core.memory.ops import (
    HEADS,
    ForwardPass,
    Recompute,
    allocate_inputs,
    decoder_layer,
    embedding_output,
    forward_without_grad,
    generate,
    norm,
    scaled_embedding_copy,
)
from core.memory.program import LayerKind, Program, When
from core.memory.resident import allocate_states, held, load, trainables
from core.memory.several_devices import Gathers, bucket_bytes, division
from core.memory.simulator import (
    AutogradGraph,
    DeviceMemory,
    Node,
    Tensor,
    WeightGradient,
)

MemoryPhase = Literal["load", "forward", "backward", "optimizer_step", "eval", "save", "generation"]
"""Part of a run. Only stages that generate answers have the last one."""
PHASES: tuple[MemoryPhase, ...] = get_args(MemoryPhase)
MAX_UNSORTED_TOKENS = 3072
SORTING_BYTES = 6 * 8
"""Above so many tokens the rows of an embedding's gradient are sorted by word, with six int64
lists, and summed in float32 (embedding_dense_backward_cuda in
aten/src/ATen/native/cuda/Embedding.cu, EmbeddingBackwardKernel.cu)."""


@dataclass(frozen=True)
class LayerFootprint:
    """Memory that one layer's forward pass leaves behind, and what its backward pass recomputes."""

    num_savers: int
    """Operations that save something."""
    gradient_bytes_before_saved: int
    """Bytes of gradients allocated before the backward pass first needs a saved tensor. At that
    point checkpointing recomputes the layer."""
    kept_bytes: int
    """Bytes that a compiled layer keeps under an activation memory budget, its input excepted."""
    recompute: Recompute


@dataclass
class LayerState:
    """Tensors of one layer between its forward and its backward pass."""

    x: Tensor
    """Hidden states before the layer."""
    output: Tensor
    nodes: list[Node]
    """Empty if the layer is recomputed."""
    checkpoint_input: list[Tensor]
    """Saved input of a layer that is recomputed."""
    offloaded: list[Tensor]
    """The same, if it waits in main memory."""
    kept_partially: list[Tensor]
    """Tensors that a compiled layer keeps of those it would save without a budget."""


@dataclass
class _ForwardState:
    """Tensors of one model between its forward and its backward pass."""

    program: Program
    model: str
    inputs: list[Tensor]
    layers: list[LayerState]
    last_nodes: list[Node]
    """Nodes of the last norm and the head."""
    loss: Tensor
    kept_inputs: list[Tensor]
    """Inputs that 8-bit layers keep outside the graph."""


class Simulation:
    """One run of a program whose decoder layers are of the given kinds.

    Memory peaks are kept by phase. Within the forward and the backward pass each of the `num_ends`
    first and last layers of every section is a scope: `forward`, `forward/0/0`, `forward/0/-1` and
    so on.
    """

    def __init__(self, program: Program, kinds: tuple[LayerKind, ...], num_ends: int = 2):
        self.program = program
        self.kinds = kinds
        self.memory = DeviceMemory()
        self.graph = AutogradGraph(self.memory, program.offloads_activations, division(program))
        self.trained = tuple(held(program, each) for each in trainables(program, kinds))
        self._gathers = Gathers(program, self.graph)
        self._positions = positions(kinds, num_ends)
        self._has_states = False
        self._threads_with_workspace: set[str] = set()

    def run(self) -> "Simulation":
        """Load, take one step with the optimizer's states in place, evaluate and save."""
        self.load()
        self.memory.enter("optimizer_step")
        self.allocate_states_once()  # every step but the first finds them
        self.step()
        self.evaluate()
        self.memory.enter("save")
        return self

    def load(self) -> None:
        """Load the model and auxiliary models."""
        self.memory.enter("load")
        load(self.program, self.kinds, self.memory)
        self.memory.allocate(bucket_bytes(self.program, self.trained), 1, "gradients")

    def step(self) -> None:
        """Take one optimizer step. The first one allocates the optimizer's states."""
        program, graph = self.program, self.graph
        if program.generation:
            generate(program, program.generation, self.kinds, graph, self._gathers)
            self.memory.enter("generation")
            self._run_no_grad_forwards("generation")
        for _ in range(min(program.accumulation_steps, 2)):  # the third is like the second
            self.micro_step()
        self.memory.enter("optimizer_step")
        self.allocate_states_once()
        self.allocate_optimizer_temporaries()
        graph.clear_gradients()

    def evaluate(self) -> None:
        """Run the loss on a batch of an evaluation without a graph."""
        self.memory.enter("eval")
        programs = [each.program for each in self.program.no_grad_forwards]
        scores_first = self.program.generation is not None
        programs.insert(len(programs) if scores_first else 0, self.program)
        for program in programs:
            batch_size = program.evaluation_batch_size or program.batch_size
            batch = replace(program, batch_size=batch_size)
            forward_without_grad(batch, self.graph, self._gathers_of(program))
        if self.program.checks:
            generate(self.program, self.program.checks, self.kinds, self.graph, self._gathers)

    def micro_step(self) -> None:
        """Run one micro-batch forward and backward through every model that trains."""
        self._enter("forward")
        self._allocate_workspace("forward")
        self._run_no_grad_forwards("before")
        states = [self._forward(self.program, "")]
        for auxiliary in self.program.auxiliary_models:
            if auxiliary.trains:
                states.append(self._forward(auxiliary.program, f"{auxiliary.component}."))
        self._enter("forward")
        self._run_no_grad_forwards("after")
        self._enter("backward")
        self._allocate_workspace("backward")
        for state in reversed(states):
            self._backward(state)

    def _run_no_grad_forwards(self, *times: When) -> None:
        for each in self.program.no_grad_forwards:
            if each.when in times:
                forward_without_grad(each.program, self.graph, self._gathers_of(each.program))

    def _gathers_of(self, program: Program) -> Gathers:
        """Return the gathers of the model that a program runs: an auxiliary model has its own."""
        if any(program is each.program for each in self.program.auxiliary_models):
            return Gathers(program, self.graph, keeps_tail=False)
        return self._gathers

    # Forward

    def _forward(self, program: Program, model: str) -> _ForwardState:
        """Run embedding, layers, last norm and head; return what the backward pass needs."""
        memory, graph = self.memory, self.graph
        fwd = ForwardPass(program, graph, model=model, kept_inputs=[])
        inputs = allocate_inputs(program, self.kinds, memory)
        inputs += scaled_embedding_copy(program, memory)
        self._gathers.forward_embedding()
        x = embedding_output(program, memory)
        embedding = memory.retain(x)  # a variable of the model's forward(), alive until it returns
        layers = []
        for index, kind in enumerate(self.kinds):
            self._enter("forward", index)
            self._gathers.forward_layer(index, kind)
            layer = self.layer_forward(fwd, x, kind, f"{model}layers.{index}")
            layers.append(layer)
            x = layer.output
        self._enter("forward")
        self._gathers.forward_tail()
        fwd.trains = program.trains_last_norm
        x = norm(fwd, x, f"{model}norm")
        memory.release(embedding)
        fwd.trains = program.trains_head
        loss = self.run_head(fwd, x)
        fwd.end_autocast()
        self._gathers.end_forward()
        kept_inputs = fwd.kept_inputs or []
        return _ForwardState(program, model, inputs, layers, graph.pop_nodes(), loss, kept_inputs)

    def layer_forward(self, fwd: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> LayerState:
        """Run one layer. A checkpointed layer saves its input and records nothing."""
        graph = self.graph
        needs_grad = kind.trains or fwd.program.lora is not None or x.requires_grad
        is_recomputed = kind.is_checkpointed and needs_grad
        checkpoint_input, offloaded = graph.save([x] if is_recomputed else [])
        fwd.trains = kind.trains
        graph.is_recording = not kind.is_checkpointed
        output = decoder_layer(fwd, x, kind, name)
        graph.is_recording = True
        output.requires_grad |= is_recomputed
        kept = []
        if is_recomputed and fwd.program.recomputes_partially:
            num_bytes = dry_run(fwd.program, kind).kept_bytes
            kept.append(self.memory.allocate(num_bytes, 1, "activations"))
        return LayerState(x, output, graph.pop_nodes(), checkpoint_input, offloaded, kept)

    def run_head(self, fwd: ForwardPass, hidden: Tensor) -> Tensor:
        """Return the loss from the last hidden states, which are released."""
        return HEADS[fwd.program.head](fwd, hidden)

    # Backward

    def _backward(self, state: _ForwardState) -> None:
        """Run head, last norm, layers from the last to the first and embedding backward."""
        program, memory, graph = state.program, self.memory, self.graph
        self._enter("backward")
        self._gathers.backward_tail(self.kinds)
        seed = memory.allocate(1, 4, "temporary")
        gradient = graph.backward(state.last_nodes, state.loss, seed, state.layers[-1].output)
        memory.release(state.loss)
        self._gathers.after_tail()
        for index in reversed(range(len(self.kinds))):
            self._enter("backward", index)
            if gradient is not None:  # below the first trained layer nothing needs a gradient
                self._gathers.backward_layer(index, self.kinds)
                graph.deferred = [] if program.compiles_layers else None
                gradient = self._layer_backward(state, index, gradient)
                memory.release(*(graph.deferred or []))
                graph.deferred = None
                self._gathers.after_layer(index)
            memory.release(*state.layers[index].checkpoint_input)
        self._enter("backward")
        self._gathers.backward_embedding()
        if program.trains_embedding:
            self._embedding_backward(state)
        self._gathers.end_backward()
        if gradient is not None:
            memory.release(gradient)
        memory.release(*state.inputs, *state.kept_inputs)

    def _layer_backward(self, state: _ForwardState, index: int, gradient: Tensor) -> Tensor | None:
        """Return the gradient of a layer's input. A checkpointed layer is recomputed first."""
        program, memory, graph = state.program, self.memory, self.graph
        layer, kind = state.layers[index], self.kinds[index]
        if not kind.is_checkpointed:
            return graph.backward(layer.nodes, layer.output, gradient, layer.x)
        # recomputing allocates everything that a layer saves, also what it kept
        memory.release(*layer.kept_partially)
        restored = graph.bring_back(layer.offloaded)
        graph.offloads = False  # recomputed tensors are used at once
        x = restored[0] if restored else layer.x
        x.requires_grad = layer.x.requires_grad
        # The first node that needs a saved tensor starts the recomputation. Gradients that autograd
        # made until then stay alive.
        footprint = dry_run(program, kind)
        early = memory.allocate(footprint.gradient_bytes_before_saved, 1, "temporary")
        graph.num_savers = 0
        graph.stop_after = footprint.num_savers
        fwd = ForwardPass(program, graph, trains=kind.trains, recompute=footprint.recompute)
        output = decoder_layer(fwd, memory.retain(x), kind, f"{state.model}layers.{index}")
        memory.is_suppressed = False
        graph.stop_after = None
        fwd.end_autocast()
        memory.release(output, early)
        input_gradient = graph.backward(graph.pop_nodes(), output, gradient, x)
        memory.release(*restored)
        graph.offloads = program.offloads_activations
        return input_gradient

    def _embedding_backward(self, state: _ForwardState) -> None:
        """Make the gradient of the embedding, or of its trained copy."""
        program, shape = state.program, state.program.shape
        num_bytes = shape.vocab_size * shape.hidden_size * program.trained_itemsize
        sorting_bytes = 0
        if program.num_tokens > MAX_UNSORTED_TOKENS and not program.on_cpu:
            sorting_bytes = program.num_tokens * (SORTING_BYTES + 4 * shape.hidden_size)
        self.graph.accumulate(WeightGradient(f"{state.model}embedding", num_bytes, sorting_bytes))

    # Optimizer

    def allocate_states_once(self) -> None:
        """Allocate the optimizer's states in the first step."""
        if not self._has_states:
            allocate_states(self.program, self.trained, self.memory)
        self._has_states = True

    def allocate_optimizer_temporaries(self) -> None:
        """Allocate and free what the optimizer's kernels need while they run."""
        optimizer, memory = self.program.optimizer, self.memory
        for _ in range(optimizer.copies_of_all):
            copies = [memory.allocate(each.num_bytes, 1, "temporary") for each in self.trained]
            memory.release(*copies)
        is_projected = optimizer.projection_rank is not None
        sizes = [each.numel for each in self.trained if each.is_layer_matrix or not is_projected]
        memory.temporary(optimizer.float_copies_of_largest * 4 * max(sizes, default=0))

    # Bookkeeping

    def _enter(self, phase: MemoryPhase, layer: int | None = None) -> None:
        """Enter the scope of a phase, or of one of its layers."""
        if layer is None:
            self.memory.enter(phase)
        else:
            self.memory.enter(f"{phase}/{self._positions[layer]}", f"{phase}, layer {layer + 1}")

    def _allocate_workspace(self, thread: str) -> None:
        """Allocate cuBLAS's workspace, which a thread keeps from its first matmul on."""
        if thread not in self._threads_with_workspace:
            self._threads_with_workspace.add(thread)
            self.memory.allocate(self.program.workspace_bytes, 1, "temporary")


@lru_cache(maxsize=256)
def dry_run(program: Program, kind: LayerKind) -> LayerFootprint:
    """Run one layer forward on an empty graph and return what its forward pass saves.

    Without a budget, checkpointing recomputes everything. A budget that has room for everything
    but the tensors that need no matmul leaves matmuls alone (choose_saved_values_set in
    torch/_functorch/partitioners.py).
    """
    graph = AutogradGraph(DeviceMemory())
    fwd = ForwardPass(program, graph, trains=kind.trains)
    x = embedding_output(program, graph.memory)
    x.requires_grad = True
    decoder_layer(fwd, x, kind, "layer")
    saved = {tensor for node in graph.nodes for tensor in node.saved if tensor is not x}
    allowed_bytes = program.activation_memory_budget * sum(tensor.num_bytes for tensor in saved)
    needed_bytes = sum(tensor.num_bytes for tensor in saved if not tensor.is_recomputable)
    recompute: Recompute = "nothing"
    if program.recomputes_partially:
        recompute = "pointwise" if needed_bytes < allowed_bytes else "matmuls"
    return LayerFootprint(
        num_savers=graph.num_savers,
        gradient_bytes_before_saved=graph.gradient_bytes_before_saved(),
        kept_bytes=min(needed_bytes, int(allowed_bytes)),
        recompute=recompute,
    )


def sections(kinds: Sequence[LayerKind]) -> list[tuple[LayerKind, ...]]:
    """Split layers into the frozen ones in front and those that train. Often there is one part."""
    return [tuple(section) for _, section in groupby(kinds, key=lambda kind: kind.trains)]


def positions(kinds: Sequence[LayerKind], num_ends: int) -> list[str]:
    """Return the position of each layer as section/index, counted from the nearer end.

    All layers that are far from both ends share one position.
    """
    found = []
    for number, section in enumerate(sections(kinds)):
        for index in range(len(section)):
            position = index
            if index >= num_ends:
                position = max(index - len(section), -num_ends - 1)
            found.append(f"{number}/{position}")
    return found
