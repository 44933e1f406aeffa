"""Loss heads: turn the last hidden states into a loss. Each head is one row of HEADS.

Sources: trl/kernels/chunked_logprob.py (TRL 1.16); ForCausalLMLoss in transformers/loss/
loss_utils.py. Shapes: N tokens, h hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from core.memory.ops.forward import ForwardPass
from core.memory.program import Head
from core.memory.simulator import DeviceTensor, WeightGradient

TILE_TOKENS = 4096
TILE_VOCABULARY = 32_768
"""The fused head computes logits for this many tokens and words at once."""
STATISTICS = 10
"""float32 numbers per token: seven running statistics, log-probability, entropy and is_top1."""
CPU_TILE_COPIES = 4
"""Without Triton torch reduces a tile: scaled, masked, exponentiated, weighted; all float32."""

LossAndLogits = tuple[DeviceTensor, list[DeviceTensor]]
"""(loss, the logits that the caller may keep: one tensor or none)."""


def fused_head(fwd: ForwardPass, hidden: DeviceTensor) -> LossAndLogits:
    """TRL's head: log-probabilities per token from hidden [N, h]. Logits never exist as a whole.

    Saved: the hidden states of the scored tokens. Temporary in the backward pass: one tile, the
    gradient of the hidden states in float32, and that of the head's weight in float32 if it trains
    and is not float32 itself.
    """
    program, shape = fwd.program, fwd.program.shape
    tile_bytes = _tile_bytes(fwd)
    scored = fwd.graph.record(hidden, numel=program.num_scored_tokens * shape.hidden_size)
    backward_bytes = tile_bytes + 4 * scored.numel
    if program.trains_head and program.head_itemsize < 4:
        backward_bytes += 4 * shape.vocab_size * shape.hidden_size
    loss = fwd.graph.record(
        scored,
        numel=STATISTICS * program.num_scored_tokens,
        itemsize=4,
        saves=[scored],
        temporary_bytes=tile_bytes,
        backward_temporary_bytes=backward_bytes,
        temporary_component="logits",
        weights=_head_gradient(fwd),
        consumes=True,
    )
    fwd.graph.release(hidden)
    return loss, []


def _tile_bytes(fwd: ForwardPass) -> int:
    """Return the bytes of one tile of logits, and of the part of the head's weight cast for it.

    A small vocabulary leaves a part of the tile unused, which a CPU never makes resident.
    """
    program, shape = fwd.program, fwd.program.shape
    tokens = min(program.num_scored_tokens, TILE_TOKENS)
    words = min(shape.vocab_size, TILE_VOCABULARY)
    weight_bytes = 0
    if program.head_itemsize != program.compute_itemsize:
        weight_bytes = words * shape.hidden_size * program.compute_itemsize
    if program.on_cpu:
        return tokens * words * (program.compute_itemsize + 4 * CPU_TILE_COPIES) + weight_bytes
    return tokens * TILE_VOCABULARY * program.compute_itemsize + weight_bytes


def native_head(fwd: ForwardPass, hidden: DeviceTensor) -> LossAndLogits:
    """`model(labels=...)`: loss from hidden [N, h], over all logits [N, V].

    Saved: the log-softmax of a float32 copy of the logits. The backward pass adds two gradients of
    its size: 12 bytes per logit at the peak.
    """
    graph = fwd.graph
    logits = _logits(fwd, hidden)
    outputs = graph.retain(logits)
    if logits.itemsize != 4:
        logits = graph.record(logits, itemsize=4, component="logits", consumes=True)
    log_softmax = graph.record(logits, saves_output=True, component="logits", consumes=True)
    loss = graph.record(
        log_softmax, numel=1, saves=[log_softmax], component="logits", consumes=True
    )
    if fwd.program.autocast:  # accelerate's convert_outputs_to_fp32
        outputs32 = fwd.memory.allocate(outputs.numel, 4, "logits")
        graph.release(outputs)
        outputs = outputs32
    graph.release(hidden)
    return loss, [outputs]


def _logits(fwd: ForwardPass, hidden: DeviceTensor) -> DeviceTensor:
    """Return `lm_head(hidden)` [N, V] in the precision of matmuls, capped if the model does so."""
    program, graph, shape = fwd.program, fwd.graph, fwd.program.shape
    x = graph.cast(hidden, program.compute_itemsize)
    saves = [x] if program.trains_head else []
    weight_cast = None
    if program.autocast and program.head_itemsize == 4:
        weight_cast = fwd.memory.allocate(shape.vocab_size * shape.hidden_size, 2, "temporary")
        saves.append(weight_cast)
    logits = graph.record(
        x,
        numel=fwd.num_tokens * shape.vocab_size,
        saves=saves,
        weights=_head_gradient(fwd),
        component="logits",
        consumes=True,
    )
    if weight_cast is not None:
        fwd.cache_weight_cast(weight_cast, fwd.trains)
    if shape.final_logit_softcapping:
        for saves_output in (False, True, False):  # divided by the cap, tanh, times the cap
            logits = graph.record(
                logits, saves_output=saves_output, component="logits", consumes=True
            )
    return logits


def sixteen_bit_head(fwd: ForwardPass, hidden: DeviceTensor) -> LossAndLogits:
    """litgpt's head: cross-entropy of 16-bit logits in chunks of 128 tokens."""
    graph = fwd.graph
    logits = _logits(fwd, hidden)
    outputs = graph.retain(logits)
    log_softmax = graph.record(logits, saves_output=True, component="logits", consumes=True)
    loss = graph.record(
        log_softmax,
        numel=1,
        saves=[log_softmax],
        gradient_bytes=[log_softmax.itemsize * 128 * fwd.program.shape.vocab_size],
        component="logits",
        consumes=True,
    )
    graph.release(hidden)
    return loss, [outputs]


def score_head(fwd: ForwardPass, hidden: DeviceTensor) -> LossAndLogits:
    """Score of each sequence from hidden [N, h]: one number per token, the last token's counts."""
    program, graph = fwd.program, fwd.graph
    x = graph.cast(hidden, program.compute_itemsize)
    weights = []
    if program.trains_head:
        num_bytes = program.shape.hidden_size * program.trained_itemsize
        weights.append(WeightGradient(f"{fwd.model}score", num_bytes))
    scores = graph.record(x, numel=fwd.num_tokens, saves=[x], weights=weights)
    graph.release(x, hidden)
    return graph.record(scores, numel=program.batch_size, itemsize=4, consumes=True), []


def preference_head(fwd: ForwardPass, hidden: DeviceTensor) -> LossAndLogits:
    """TRL's ORPO and CPO: loss from hidden [N, h], half of them of chosen answers.

    All logits [N, V] exist in float32. The cross-entropy of the chosen half copies it and saves its
    log-softmax; the log-probabilities of the tokens save the logits. Sources: concatenated_forward
    and get_batch_logps in trl/experimental/orpo/orpo_trainer.py, trl/kernels/logprob_entropy.py.
    """
    graph = fwd.graph
    logits = _logits_in_float32(fwd, hidden)
    half = logits.numel // 2
    view = graph.record(logits, numel=0)  # its gradient is a tensor of its own
    chosen = graph.record(
        view, numel=half, component="logits", gradient_bytes=[4 * half], consumes=True
    )
    log_softmax = graph.record(chosen, saves_output=True, component="logits", consumes=True)
    likelihood = graph.record(
        log_softmax, numel=1, saves=[log_softmax], component="logits", consumes=True
    )
    return graph.record(likelihood, _log_probabilities(fwd, logits), numel=1, consumes=True), []


def comparison_head(fwd: ForwardPass, hidden: DeviceTensor) -> LossAndLogits:
    """SimPO: as CPO, without the cross-entropy of the chosen half."""
    return _log_probabilities(fwd, _logits_in_float32(fwd, hidden)), []


def _logits_in_float32(fwd: ForwardPass, hidden: DeviceTensor) -> DeviceTensor:
    """Return all logits [N, V], widened by accelerate's convert_outputs_to_fp32."""
    logits = _logits(fwd, hidden)
    fwd.graph.release(hidden)
    return fwd.graph.cast(logits, 4, consumes=True)


def _log_probabilities(fwd: ForwardPass, logits: DeviceTensor) -> DeviceTensor:
    """Return the log-probability of each token from logits [N, V], which are saved and released."""
    view = fwd.graph.record(logits, numel=0)  # its gradient is a tensor of its own
    log_probabilities = fwd.graph.record(
        view,
        numel=fwd.num_tokens,
        saves=[logits],
        gradient_bytes=[logits.num_bytes],
        consumes=True,
    )
    fwd.graph.release(logits)
    return log_probabilities


HEADS: Mapping[Head, Callable[[ForwardPass, DeviceTensor], LossAndLogits]] = MappingProxyType(
    {
        "fused": fused_head,
        "native": native_head,
        "sixteen_bit": sixteen_bit_head,
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
