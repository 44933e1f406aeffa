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
from core.memory.several_devices import Gathers
from core.memory.simulator import AutogradGraph, DeviceMemory, Tensor

SAMPLED_TOKEN_COPIES, GREEDY_TOKEN_COPIES = 4, 2
"""float32 tensors [B, V]: logits, their copy and, to sample, the same by temperature and
probabilities."""
EAGER_SCORE_BYTES = 10
"""Bytes per query head and token in eager attention: score, its float32 copy, softmax."""


def generate(
    program: Program,
    generation: Generation,
    kinds: Sequence[LayerKind],
    graph: AutogradGraph,
    gathers: Gathers,
) -> None:
    """Read the prompts, then generate one token after another; simulates the last one."""
    memory, batch_size = graph.memory, generation.batch_size
    copies = SAMPLED_TOKEN_COPIES if generation.samples else GREEDY_TOKEN_COPIES
    next_token_bytes = copies * 4 * batch_size * program.shape.vocab_size
    prefill = replace(
        program,
        batch_size=batch_size,
        sequence_length=generation.prompt_tokens,
        has_mask=batch_size > 1,
        checkpointing=False,
    )
    graph.is_recording = False
    memory.enter(f"{generation.phase}/prompt")
    fwd = ForwardPass(prefill, graph, cache=[])
    cache = _prefill(fwd, kinds, generation.keeps_weight_casts, gathers)
    if generation.keeps_weight_casts:
        _cast_head(fwd)
    memory.temporary(next_token_bytes, "logits")
    memory.enter(f"{generation.phase}/answer")
    graph.release(*cache)
    cache = _full_cache(program, generation, kinds, memory)
    gathers.forward_embedding()
    gathers.forward_layer(0, kinds[0])
    _attend_to_cache(program, generation, memory)
    gathers.end_generation()
    memory.temporary(next_token_bytes, "logits")
    graph.release(*cache)
    fwd.end_autocast()
    graph.is_recording = True


def _prefill(
    fwd: ForwardPass, kinds: Sequence[LayerKind], keeps_weight_casts: bool, gathers: Gathers
) -> list[Tensor]:
    """Run the first pass, over all prompt tokens, padded on the left. Return the cache."""
    program, graph = fwd.program, fwd.graph
    inputs = allocate_inputs(program, kinds, graph.memory, num_positions=program.batch_size)
    gathers.forward_embedding()
    x = embedding_output(program, graph.memory)
    embedding = graph.retain(x)
    for index, kind in enumerate(kinds):
        gathers.forward_layer(index, kind)
        fwd.trains = kind.trains and keeps_weight_casts
        x = decoder_layer(fwd, x, kind, f"layers.{index}")
    gathers.called_tail()
    x = norm(fwd, x, "norm")
    if not keeps_weight_casts:
        fwd.end_autocast()
    graph.release(x, embedding, *inputs)
    return fwd.cache or []


def _cast_head(fwd: ForwardPass) -> None:
    """Copy the head's weight to 16 bits, if it is wider. Autocast keeps the copy if it trains."""
    program, shape = fwd.program, fwd.program.shape
    if program.autocast and program.head_itemsize > program.compute_itemsize:
        numel = shape.vocab_size * shape.hidden_size
        cast = fwd.memory.allocate(numel, program.compute_itemsize, "temporary")
        fwd.cache_weight_casts([cast], program.trains_head)


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
