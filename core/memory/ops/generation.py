"""Generation of answers by transformers' `generate`, with a cache that grows token by token.

Sources: _sample in transformers/generation/utils.py; DynamicLayer and DynamicSlidingWindowLayer in
cache_utils.py; _generate_single_turn in trl/trainer/grpo_trainer.py. Shapes: B sequences, k key
heads, d elements per head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

from core.memory.ops.forward import ForwardPass
from core.memory.ops.layer import decoder_layer, norm
from core.memory.ops.model import allocate_inputs, embedding_output
from core.memory.program import Generation, LayerKind, Program
from core.memory.simulator import AutogradGraph, DeviceMemory, Tensor

NEXT_TOKEN_COPIES = 4
"""float32 tensors [B, V]: logits, their copy, the same by temperature, probabilities."""
EAGER_SCORE_BYTES = 10
"""Bytes per query head and token in eager attention: score, its float32 copy, softmax."""


def generate(
    program: Program, generation: Generation, kinds: Sequence[LayerKind], graph: AutogradGraph
) -> None:
    """Read the prompts, then generate one token after another; simulates the last one."""
    memory, batch_size = graph.memory, generation.batch_size
    next_token_bytes = NEXT_TOKEN_COPIES * 4 * batch_size * program.shape.vocab_size
    prefill = replace(
        program,
        batch_size=batch_size,
        sequence_length=generation.prompt_tokens,
        has_mask=batch_size > 1,
        checkpointing=False,
    )
    graph.is_recording = False
    memory.enter("generation/prompt")
    cache = _prefill(prefill, kinds, graph)
    memory.temporary(next_token_bytes, "logits")
    memory.enter("generation/answer")
    graph.release(*cache)
    cache = _full_cache(program, generation, kinds, memory)
    _attend_to_cache(program, generation, memory)
    memory.temporary(next_token_bytes, "logits")
    graph.release(*cache)
    graph.is_recording = True


def _prefill(program: Program, kinds: Sequence[LayerKind], graph: AutogradGraph) -> list[Tensor]:
    """Run the first pass, over all prompt tokens, padded on the left. Return the cache."""
    cache: list[Tensor] = []
    fwd = ForwardPass(program, graph, cache=cache)
    inputs = allocate_inputs(program, kinds, graph.memory, num_positions=program.batch_size)
    x = embedding_output(program, graph.memory)
    embedding = graph.retain(x)
    for index, kind in enumerate(kinds):
        x = decoder_layer(fwd, x, kind, f"layers.{index}")
    x = norm(fwd, x, "norm")
    fwd.end_autocast()
    graph.release(x, embedding, *inputs)
    return cache


def _full_cache(
    program: Program, generation: Generation, kinds: Sequence[LayerKind], memory: DeviceMemory
) -> list[Tensor]:
    """Allocate keys and values [B, k, tokens, d] of each layer at the last token.

    A windowed layer keeps only its window. Rotated keys are as wide as the residual.
    """
    shape, value_itemsize = program.shape, program.compute_itemsize
    key_itemsize = max(program.residual_itemsize, value_itemsize)
    cache = []
    for kind in kinds:
        tokens = generation.num_tokens
        if kind.is_windowed and shape.sliding_window:
            tokens = min(tokens, shape.sliding_window)
        numel = generation.batch_size * tokens * shape.num_key_value_heads * shape.head_dim
        cache.append(memory.allocate(numel, key_itemsize, "generation_cache"))
        cache.append(memory.allocate(numel, value_itemsize, "generation_cache"))
    return cache


def _attend_to_cache(program: Program, generation: Generation, memory: DeviceMemory) -> None:
    """Simulate one layer at the last token.

    The cache grows by a copy that is one token longer, first of the keys, then of the values. Eager
    attention repeats both for every query head (eager_attention_forward); other kernels read them
    as they are (pack_gqa in transformers/integrations/sdpa_attention.py).
    """
    shape, itemsize = program.shape, program.compute_itemsize
    num_tokens = generation.batch_size * generation.num_tokens
    memory.temporary(num_tokens * shape.num_key_value_heads * shape.head_dim * itemsize)
    if program.attention == "eager" and shape.num_attention_heads != shape.num_key_value_heads:
        head_bytes = 2 * shape.head_dim * itemsize + EAGER_SCORE_BYTES
        memory.temporary(num_tokens * shape.num_attention_heads * head_bytes)
