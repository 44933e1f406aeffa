"""Answers drawn from the model that trains: `generate` of transformers, with a cache that grows token by token.

Sources: _sample in transformers/generation/utils.py; DynamicLayer and DynamicSlidingWindowLayer in cache_utils.py;
_generate_single_turn in trl/trainer/grpo_trainer.py. Shapes: R sequences, k key heads, d per head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

from core.memory.ops.forward import embedded, inputs
from core.memory.ops.layer import decoder_layer, norm
from core.memory.ops.linear import ForwardPass
from core.memory.program.program import Generation, LayerKind, Program
from core.memory.simulator.autograd import Tape
from core.memory.simulator.device_memory import Heap, Tensor

COPIES_OF_SCORES = 4
"""float32 numbers per word of the vocabulary: logits, their copy, the same by temperature, probabilities."""
BYTES_OF_SCORES = 10
"""Of each query head and token, where attention is spelled out: the scores, the same in float32, their softmax."""


def generate(program: Program, drawn: Generation, kinds: Sequence[LayerKind], tape: Tape) -> None:
    """Read the prompts, then draw tokens until the last."""
    reads = replace(
        program,
        rows=drawn.rows,
        row_tokens=drawn.prompt_tokens,
        has_mask=drawn.rows > 1,
        checkpointing=False,
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
    """The first pass, over all tokens of the prompts, padded on the left. Returns the cache."""
    cache: list[Tensor] = []
    run = ForwardPass(program, tape, cache=cache)
    given, x = (
        inputs(program, kinds, tape.heap, num_tables=program.rows),
        embedded(program, tape.heap),
    )
    first = tape.hold(x)
    for index, kind in enumerate(kinds):
        x = decoder_layer(run, x, kind, f"layers.{index}")
    last = norm(run, x, "norm")
    run.end_autocast()
    tape.drop(last, first, *given)
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
    """One layer at the last token: keys and values are copied to be one longer, each once the other is. Spelled out,
    attention repeats both for every query head (eager_attention_forward); other kernels take what there is (pack_gqa
    in transformers/integrations/sdpa_attention.py).
    """
    shape, tokens = program.shape, drawn.prompt_tokens + drawn.completion_tokens
    heap.scratch(
        drawn.rows * tokens * shape.num_key_value_heads * shape.head_dim * program.compute_bytes
    )
    if program.attention == "eager" and shape.num_attention_heads != shape.num_key_value_heads:
        repeated_bytes = 2 * shape.head_dim * program.compute_bytes
        heap.scratch(
            drawn.rows * tokens * shape.num_attention_heads * (repeated_bytes + BYTES_OF_SCORES)
        )


def _score(program: Program, drawn: Generation, heap: Heap) -> None:
    """The scores [R, V] of the next token."""
    heap.scratch(COPIES_OF_SCORES * 4 * drawn.rows * program.shape.vocab_size, "logits")
