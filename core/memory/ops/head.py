"""Loss heads: turn the last hidden states into a loss. Each head is one row of HEADS.

Source: trl/kernels/chunked_logprob.py (TRL 1.16). Shapes: N tokens, h hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from core.memory.ops.forward import ForwardPass
from core.memory.program import Head
from core.memory.simulator import Tensor, WeightGradient

TILE_TOKENS = 4096
TILE_VOCABULARY = 32_768
"""The fused head computes logits for this many tokens and words at once."""
STATISTICS = 10
"""float32 numbers per token: seven running statistics, log-probability, entropy and is_top1."""
CPU_COPIES, CPU_BACKWARD_COPIES = 3.25, 7.25
"""float32 copies of a tile where torch reduces it, without Triton (_forward_tile, _backward_tile):
scaled, exponentiated and weighted; backward also log-probability, probability, gradient and two
parts of it. A quarter is a mask."""


def fused_head(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Run TRL's head: log-probabilities per token from hidden [N, h], without all logits at once.

    Saved: the hidden states of the scored tokens. Temporary in the backward pass: one tile, the
    gradient of the hidden states in float32, and that of the head's weight in float32 if it trains
    and is not float32 itself. A small vocabulary leaves a part of the tile unused, which a CPU
    never makes resident.
    """
    program, shape = fwd.program, fwd.program.shape
    words = min(shape.vocab_size, TILE_VOCABULARY)
    tokens = min(program.num_scored_tokens, TILE_TOKENS)
    tile_bytes = tokens * TILE_VOCABULARY * program.compute_itemsize
    backward_bytes = 0
    if program.on_cpu:
        tile_bytes = tokens * words * (program.compute_itemsize + round(4 * CPU_COPIES))
        backward_bytes = tokens * words * round(4 * (CPU_BACKWARD_COPIES - CPU_COPIES))
    if program.head_itemsize != program.compute_itemsize:  # a cast of the tile's weights
        tile_bytes += words * shape.hidden_size * program.compute_itemsize
    scored = fwd.graph.record(hidden, numel=program.num_scored_tokens * shape.hidden_size)
    backward_bytes += tile_bytes + 4 * scored.numel
    if program.trains_head and program.head_itemsize < 4:
        backward_bytes += 4 * shape.vocab_size * shape.hidden_size
    elif program.trains_head:  # a divided copy is wider than its gradient will be
        wider = program.head_itemsize - program.trained_itemsize
        backward_bytes += wider * shape.vocab_size * shape.hidden_size
    loss = fwd.graph.record(
        scored,
        numel=STATISTICS * program.num_scored_tokens,
        itemsize=4,
        saves=[scored],
        temporary_bytes=tile_bytes,
        backward_bytes=backward_bytes,
        temporary_component="logits",
        weights=_head_gradient(fwd),
        consumes=True,
    )
    fwd.graph.release(hidden)
    return loss


def smoothed_head(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Run the fused head, and compare each right word with the mean of all words in float32.

    Source: core/training/trainers/smoothing.py. An evaluation does not smooth.
    """
    program, graph, shape = fwd.program, fwd.graph, fwd.program.shape
    if not graph.is_recording:
        return fused_head(fwd, hidden)
    graph.retain(hidden)
    loss = fused_head(fwd, hidden)
    states = graph.record(hidden, itemsize=4, temporary_bytes=hidden.num_bytes, consumes=True)
    rows = fwd.memory.allocate(states.numel, 4, "activations")
    backward_bytes = states.num_bytes
    saves = [rows]
    if program.trains_head:  # gradients as large as the weight: of its rows, and of their mean
        saves.append(states)
        backward_bytes += 2 * shape.vocab_size * shape.hidden_size * program.head_itemsize
    more = graph.record(
        states,
        numel=fwd.num_tokens,
        saves=saves,
        temporary_bytes=states.num_bytes,
        backward_bytes=backward_bytes,
        consumes=True,
    )
    graph.release(rows)
    return graph.record(loss, more, numel=1, consumes=True)


def cross_entropy(
    fwd: ForwardPass, logits: Tensor, gradient_bytes: list[int] | None = None
) -> Tensor:
    """Return the cross-entropy of logits, which are released. Their log-softmax is saved."""
    graph = fwd.graph
    x = graph.record(logits, saves_output=True, component="logits", consumes=True)
    sizes = gradient_bytes
    return graph.record(
        x, numel=1, saves=[x], gradient_bytes=sizes, component="logits", consumes=True
    )


def all_logits(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Return `lm_head(hidden)` [N, V] in the precision of matmuls, capped if the model does so."""
    program, graph, shape = fwd.program, fwd.graph, fwd.program.shape
    x = graph.cast(hidden, program.compute_itemsize)
    casts = []
    if program.autocast and program.head_itemsize == 4:
        casts.append(fwd.memory.allocate(shape.vocab_size * shape.hidden_size, 2, "temporary"))
    saves = [x, *casts] if program.trains_head else casts
    numel = fwd.num_tokens * shape.vocab_size
    weights = _head_gradient(fwd)
    logits = graph.record(
        x, numel=numel, saves=saves, weights=weights, component="logits", consumes=True
    )
    fwd.cache_weight_casts(casts, fwd.trains)
    if shape.final_logit_softcapping:
        for saved in (False, True, False):  # divided by the cap, tanh, times the cap
            logits = graph.record(logits, saves_output=saved, component="logits", consumes=True)
    return logits


def score_head(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Score each sequence from hidden [N, h]: one number per token, of which the last counts."""
    program, graph = fwd.program, fwd.graph
    x = graph.cast(hidden, program.compute_itemsize)
    weights = []
    if program.trains_head:
        num_bytes = program.shape.hidden_size * program.trained_itemsize
        weights.append(WeightGradient(f"{fwd.model}score", num_bytes))
    scores = graph.record(x, numel=fwd.num_tokens, saves=[x], weights=weights)
    graph.release(x, hidden)
    return graph.record(scores, numel=program.batch_size, itemsize=4, consumes=True)


def preference_head(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Run TRL's ORPO and CPO from hidden [N, h], half of them of chosen answers.

    All logits [N, V] exist in float32. The cross-entropy of the chosen half copies it and saves its
    log-softmax; the log-probabilities of the tokens save the logits. Sources: concatenated_forward
    and get_batch_logps in trl/experimental/orpo/orpo_trainer.py, trl/kernels/logprob_entropy.py.
    """
    graph = fwd.graph
    logits = _logits_in_float32(fwd, hidden)
    half = logits.numel // 2
    view = graph.record(logits, numel=0)  # whose gradient is another tensor
    sizes = [4 * half]
    chosen = graph.record(view, numel=half, gradient_bytes=sizes, component="logits", consumes=True)
    likelihood = cross_entropy(fwd, chosen)
    return graph.record(likelihood, _log_probabilities(fwd, logits), numel=1, consumes=True)


def comparison_head(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Run SimPO: as CPO, without the cross-entropy of the chosen half."""
    return _log_probabilities(fwd, _logits_in_float32(fwd, hidden))


def _logits_in_float32(fwd: ForwardPass, hidden: Tensor) -> Tensor:
    """Return all logits [N, V], widened by accelerate's convert_outputs_to_fp32."""
    logits = all_logits(fwd, hidden)
    fwd.graph.release(hidden)
    return fwd.graph.cast(logits, 4, consumes=True)


def _log_probabilities(fwd: ForwardPass, logits: Tensor) -> Tensor:
    """Return the log-probability of each token from logits [N, V], which are saved and released."""
    graph, tokens, sizes = fwd.graph, fwd.num_tokens, [logits.num_bytes]
    view = graph.record(logits, numel=0)  # whose gradient is another tensor
    x = graph.record(view, numel=tokens, saves=[logits], gradient_bytes=sizes, consumes=True)
    graph.release(logits)
    return x


HEADS: Mapping[Head, Callable[[ForwardPass, Tensor], Tensor]] = MappingProxyType(
    {
        "fused": fused_head,
        "smoothed": smoothed_head,
        "preference": preference_head,
        "comparison": comparison_head,
        "score": score_head,
    }
)
"""Head -> function of hidden [N, h], which it releases."""


def _head_gradient(fwd: ForwardPass) -> list[WeightGradient]:
    """Return the gradient of the head's weight, or its part of a tied embedding's gradient."""
    program, shape = fwd.program, fwd.program.shape
    if not program.trains_head:
        return []
    num_bytes = shape.vocab_size * shape.hidden_size * program.trained_itemsize
    if program.is_tied:
        return [WeightGradient(f"{fwd.model}embedding", num_bytes, is_partial=True)]
    return [WeightGradient(f"{fwd.model}head", num_bytes)]
