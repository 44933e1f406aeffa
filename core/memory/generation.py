"""Answers drawn from the model that trains: `generate` of transformers, with a cache that grows token by token.

Sources: _sample in transformers/generation/utils.py; DynamicLayer and DynamicSlidingWindowLayer in cache_utils.py;
_generate_single_turn in trl/trainer/grpo_trainer.py. Shapes: R sequences, k key heads, d per head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

from core.memory.forward import embedded, inputs
from core.memory.heap import Heap, Tensor
from core.memory.layer import decoder_layer, norm
from core.memory.linear import ForwardPass
from core.memory.program import Generation, LayerKind, Program
from core.memory.tape import Tape

COPIES_OF_SCORES = 4
"""float32 numbers per word of the vocabulary: logits, their copy, the same by temperature, probabilities."""


def generate(program: Program, drawn: Generation, kinds: Sequence[LayerKind], tape: Tape) -> None:
    """Read the prompts, then draw tokens until the last."""
    reads = replace(
        program, rows=drawn.rows, row_tokens=drawn.prompt_tokens, has_mask=drawn.rows > 1, checkpointing=False
    )
    tape.is_recording = False
    tape.heap.enter("generation/prompt")
    cache = _read_prompts(reads, kinds, tape)
    _score(program, drawn, tape.heap)
    tape.heap.enter("generation/answer")
    tape.drop(*cache)
    cache = [tensor for kind in kinds for tensor in _layer_cache(program, drawn, kind, tape.heap)]
    _attend(reads, drawn, tape.heap)
    _score(program, drawn, tape.heap)
    tape.drop(*cache)
    tape.is_recording = True


def _read_prompts(program: Program, kinds: Sequence[LayerKind], tape: Tape) -> list[Tensor]:
    """The first pass, over all tokens of the prompts. Returns the cache."""
    cache: list[Tensor] = []
    run = ForwardPass(program, tape, cache=cache)
    given, x = inputs(program, kinds, tape.heap), embedded(program, tape.heap)
    for index, kind in enumerate(kinds):
        x = decoder_layer(run, x, kind, f"layers.{index}")
    last = norm(run, x, "norm")
    run.end_autocast()
    tape.drop(last, *given)
    return cache


def _layer_cache(program: Program, drawn: Generation, kind: LayerKind, heap: Heap) -> list[Tensor]:
    """Keys and values [R, k, tokens, d] of one layer at the last token; a windowed layer keeps its window."""
    shape, tokens = program.shape, drawn.prompt_tokens + drawn.completion_tokens
    if kind.is_windowed and shape.sliding_window:
        tokens = min(tokens, shape.sliding_window)
    numbers = drawn.rows * tokens * shape.num_key_value_heads * shape.head_dim
    widths = max(program.residual_bytes, program.compute_bytes), program.compute_bytes
    return [heap.allocate(numbers, width, "generation_cache") for width in widths]


def _attend(program: Program, drawn: Generation, heap: Heap) -> None:
    """One layer at the last token: the cache is copied to be one longer; with a mask, keys and values are repeated for
    every query head (sdpa_attention_forward)."""
    shape, tokens = program.shape, drawn.prompt_tokens + drawn.completion_tokens
    is_grouped = shape.num_attention_heads != shape.num_key_value_heads
    if program.has_mask and is_grouped and program.attention != "flash":
        heap.scratch(2 * drawn.rows * tokens * shape.num_attention_heads * shape.head_dim * program.compute_bytes)
    else:
        heap.scratch(drawn.rows * tokens * shape.num_key_value_heads * shape.head_dim * program.compute_bytes)


def _score(program: Program, drawn: Generation, heap: Heap) -> None:
    """The scores [R, V] of the next token."""
    heap.scratch(COPIES_OF_SCORES * 4 * drawn.rows * program.shape.vocab_size, "logits")
