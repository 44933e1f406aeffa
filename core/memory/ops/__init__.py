"""One decoder, op by op: what each operation allocates, saves and releases."""

from core.memory.ops.forward import ForwardPass, Recompute
from core.memory.ops.generation import generate
from core.memory.ops.head import HEADS, all_logits, cross_entropy
from core.memory.ops.layer import decoder_layer, norm
from core.memory.ops.model import (
    allocate_inputs,
    embedding_output,
    forward_without_grad,
    scaled_embedding_copy,
)

__all__ = [
    "HEADS",
    "ForwardPass",
    "Recompute",
    "all_logits",
    "allocate_inputs",
    "cross_entropy",
    "decoder_layer",
    "embedding_output",
    "forward_without_grad",
    "generate",
    "norm",
    "scaled_embedding_copy",
]
