"""A forward pass through a whole model: what goes in, and a pass that keeps nothing. Never runs backwards."""

from collections.abc import Sequence

from core.memory.ops.head import HEADS
from core.memory.ops.layer import decoder_layer, norm
from core.memory.ops.linear import ForwardPass
from core.memory.program.program import LayerKind, Program
from core.memory.simulator.autograd import Tape
from core.memory.simulator.device_memory import Heap, Tensor

SCALED_EMBEDDINGS = ("granite",)
"""Families that multiply the embeddings outside their module: if those ask for a gradient, they stay."""


def inputs(
    program: Program, kinds: Sequence[LayerKind], heap: Heap, num_tables: int = 1
) -> list[Tensor]:
    """Ids, labels and attention mask as 64-bit numbers, cos and sin, and the masks [B, 1, T, T].

    Rows whose tokens have other positions than those of the next have `num_tables` of cos and sin.
    """
    n, scores = program.num_tokens, program.rows * program.row_tokens**2
    masks = {kind.is_windowed for kind in kinds}
    num_tables *= len(masks) if program.shape.family.turns_by_kind else 1
    table_bytes = num_tables * program.row_tokens * program.shape.head_dim * program.residual_bytes
    sizes = [16 * n, 8 * n, table_bytes, table_bytes]
    if program.attention == "eager":
        sizes += [scores * program.residual_bytes] * len(masks)
    elif program.attention != "flash":
        sizes += [scores for is_windowed in masks if is_windowed or program.has_mask]
    return [heap.allocate(size, 1, "activations") for size in sizes]


def unscaled(program: Program, heap: Heap) -> list[Tensor]:
    """What the backward pass keeps of embeddings that are scaled outside their module."""
    is_kept = program.shape.model_type in SCALED_EMBEDDINGS and program.asks_for_input_gradients
    numbers = program.num_tokens * program.shape.hidden_size
    return [heap.allocate(numbers, program.residual_bytes, "activations")] if is_kept else []


def embedded(program: Program, heap: Heap) -> Tensor:
    """The hidden states in front of the first layer, which the model's forward pass holds on to until its end."""
    needs_gradient = program.trains_embedding or program.asks_for_input_gradients
    numbers = program.num_tokens * program.shape.hidden_size
    return heap.allocate(numbers, program.residual_bytes, "activations", needs_gradient)


def run_without_graph(program: Program, tape: Tape) -> None:
    """A forward pass that keeps nothing. It takes as much whatever the depth, so that a layer of each kind will do, and
    one before them: the input of the first layer is the embedding, which stays.
    """
    heap, was_recording = tape.heap, tape.is_recording
    layers = program.layer_kinds()
    kinds = (layers[0], *dict.fromkeys(layers))[-len(layers) :]
    tape.is_recording = False
    run = ForwardPass(program, tape)
    given, x = inputs(program, kinds, heap), embedded(program, heap)
    first = heap.hold(x)
    for index, kind in enumerate(kinds):
        run.trains = kind.trains
        x = decoder_layer(run, x, kind, f"layers.{index}")
    run.trains = program.trains_last_norm
    last = norm(run, x, "norm")
    heap.drop(first)
    run.trains = program.trains_head
    loss, outputs = HEADS[program.head](run, last)
    run.end_autocast()
    heap.drop(loss, *([outputs] if outputs else []), *given)
    tape.is_recording = was_recording
