"""Whole model: its inputs, its embedding, and a forward pass under torch.no_grad()."""

from collections.abc import Sequence

from core.memory.ops.forward import ForwardPass
from core.memory.ops.head import HEADS
from core.memory.ops.layer import decoder_layer, norm
from core.memory.program import LayerKind, Program
from core.memory.several_devices import Gathers
from core.memory.simulator import AutogradGraph, DeviceMemory, Tensor

SCALED_EMBEDDINGS = ("granite",)
"""Families that multiply the embeddings outside their module, so that autograd saves them."""


def allocate_inputs(
    program: Program, kinds: Sequence[LayerKind], memory: DeviceMemory, num_positions: int = 1
) -> list[Tensor]:
    """Allocate token ids, labels and attention mask in int64, cos and sin, and masks [B, 1, T, T].

    Left-padded sequences have positions of their own: `num_positions` tables of cos and sin.
    """
    num_tokens = program.num_tokens
    num_scores = program.batch_size * program.sequence_length**2
    windows = {kind.is_windowed for kind in kinds}
    num_tables = num_positions
    if program.shape.family.has_rope_per_layer_type:
        num_tables *= len(windows)
    table_numel = num_tables * program.sequence_length * program.shape.head_dim
    table_bytes = table_numel * program.residual_itemsize
    sizes = [16 * num_tokens, 8 * num_tokens, table_bytes, table_bytes]
    if program.attention == "eager":
        sizes += [num_scores * program.residual_itemsize] * len(windows)
    elif program.attention != "flash":  # boolean masks
        sizes += [num_scores for is_windowed in windows if is_windowed or program.has_mask]
    return [memory.allocate(size, 1, "activations") for size in sizes]


def scaled_embedding_copy(program: Program, memory: DeviceMemory) -> list[Tensor]:
    """Allocate what autograd saves of embeddings that are scaled outside their module.

    The same of embeddings before noise is added: if they require a gradient, they are a leaf.
    """
    if not program.requires_input_gradients:
        return []
    is_scaled = program.shape.model_type in SCALED_EMBEDDINGS
    numel = program.num_tokens * program.shape.hidden_size
    num_copies = is_scaled + program.adds_noise
    itemsize = program.residual_itemsize
    return [memory.allocate(numel, itemsize, "activations") for _ in range(num_copies)]


def embedding_output(program: Program, memory: DeviceMemory) -> Tensor:
    """Allocate the hidden states before the first layer."""
    requires_grad = program.trains_embedding or program.requires_input_gradients
    numel = program.num_tokens * program.shape.hidden_size
    return memory.allocate(numel, program.residual_itemsize, "activations", requires_grad)


def forward_without_grad(program: Program, graph: AutogradGraph, gathers: Gathers) -> None:
    """Run a forward pass that saves nothing.

    It takes the same memory at any depth. One layer of each kind is enough, with one before them:
    the input of the first layer is the embedding, which stays alive.
    """
    memory, was_recording = graph.memory, graph.is_recording
    layers = program.layer_kinds()
    kinds = (layers[0], *dict.fromkeys(layers))[-len(layers) :]
    graph.is_recording = False
    fwd = ForwardPass(program, graph)
    inputs = allocate_inputs(program, kinds, memory)
    gathers.forward_embedding()
    x = embedding_output(program, memory)
    embedding = memory.retain(x)
    for index, kind in enumerate(kinds):
        gathers.forward_layer(index, kind)
        fwd.trains = kind.trains
        x = decoder_layer(fwd, x, kind, f"layers.{index}")
    gathers.forward_tail()
    fwd.trains = program.trains_last_norm
    x = norm(fwd, x, "norm")
    memory.release(embedding)
    fwd.trains = program.trains_head
    loss = HEADS[program.head](fwd, x)
    fwd.end_autocast()
    gathers.end_forward(has_graph=False)
    memory.release(loss, *inputs)
    graph.is_recording = was_recording
