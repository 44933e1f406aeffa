"""The loss heads: what turns the last hidden states into a loss. A head is one row of HEADS.

Sources: trl/kernels/chunked_logprob.py (TRL 1.16); ForCausalLMLoss in transformers/loss/loss_utils.py. Shapes: N
tokens, h hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from core.memory.ops.linear import ForwardPass, keep_cast
from core.memory.program.program import Head
from core.memory.simulator.autograd import WeightGradient
from core.memory.simulator.device_memory import Tensor

TILE_TOKENS = 4096
TILE_VOCABULARY = 32_768
"""Logits of the fused head exist for this many tokens and words at once."""
STATISTICS = 10
"""float32 numbers per token: seven running statistics, and log-probability, entropy and is_top1."""
CPU_TILE_COPIES = 4
"""Without Triton a tile is folded in torch: scaled, masked, exponentiated and weighed, each in float32."""


def fused_head(run: ForwardPass, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """TRL's head for hidden [N, h]: per-token log-probabilities; the logits never exist as a whole.

    Kept: the hidden states of the tokens that count. Backward: one tile, the gradient of the hidden
    states in float32, and that of the head's weight in float32, if it trains and is not float32 itself.
    """
    program, shape = run.program, run.program.shape
    tile_bytes = _tile_bytes(run)
    copies_gradient = program.trains_head and program.head_bytes < 4
    weight_bytes = 4 * shape.vocab_size * shape.hidden_size if copies_gradient else 0
    chosen = run.tape.run(hidden, numbers=program.num_scored_tokens * shape.hidden_size)
    loss = run.tape.run(
        chosen,
        numbers=STATISTICS * program.num_scored_tokens,
        number_bytes=4,
        saves=[chosen],
        scratch_bytes=tile_bytes,
        backward_scratch_bytes=tile_bytes + 4 * chosen.numbers + weight_bytes,
        scratch_kind="logits",
        weights=_head_gradient(run),
        consumes=True,
    )
    run.tape.drop(hidden)
    return loss, None


def _tile_bytes(run: ForwardPass) -> int:
    """One tile of logits, and the part of the head's weight that makes it where that has to be cast.

    A small vocabulary leaves a part of the tile unused, which a CPU never makes resident.
    """
    program, shape = run.program, run.program.shape
    tokens, words = (
        min(program.num_scored_tokens, TILE_TOKENS),
        min(shape.vocab_size, TILE_VOCABULARY),
    )
    weight_bytes = (
        words * shape.hidden_size * program.compute_bytes
        if program.head_bytes != program.compute_bytes
        else 0
    )
    if program.on_cpu:
        return tokens * words * (program.compute_bytes + 4 * CPU_TILE_COPIES) + weight_bytes
    return tokens * TILE_VOCABULARY * program.compute_bytes + weight_bytes


def native_head(run: ForwardPass, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """`model(labels=...)` for hidden [N, h]: logits [N, V], their float32 copy and its log-softmax, which is kept.

    The backward pass adds two gradients of that size: 12 bytes per logit at the peak. Returns the logits too, for a
    program that holds on to the outputs of the model.
    """
    program, tape = run.program, run.tape
    logits = _logits(run, hidden)
    outputs = tape.hold(logits)
    logits32 = (
        logits
        if logits.number_bytes == 4
        else tape.run(logits, number_bytes=4, kind="logits", consumes=True)
    )
    log_softmax = tape.run(logits32, saves_output=True, kind="logits", consumes=True)
    loss = tape.run(log_softmax, numbers=1, saves=[log_softmax], kind="logits", consumes=True)
    if program.autocast:  # accelerate's convert_outputs_to_fp32
        outputs32 = tape.heap.allocate(outputs.numbers, 4, "logits")
        tape.drop(outputs)
        outputs = outputs32
    tape.drop(hidden)
    return loss, outputs


def _logits(run: ForwardPass, hidden: Tensor) -> Tensor:
    """`lm_head(hidden)`, soft-capped if the model does so: [N, V] in the precision of the math."""
    program, tape, shape = run.program, run.tape, run.program.shape
    x = tape.cast(hidden, program.compute_bytes)
    saves, cast = [x] if program.trains_head else [], None
    if program.autocast and program.head_bytes == 4:
        cast = tape.heap.allocate(shape.vocab_size * shape.hidden_size, 2, "temporary")
        saves.append(cast)
    numbers = run.num_tokens * shape.vocab_size
    logits = tape.run(
        x, numbers=numbers, saves=saves, weights=_head_gradient(run), kind="logits", consumes=True
    )
    if cast is not None:
        keep_cast(run, cast, run.trains)
    if shape.final_logit_softcapping:
        for keeps_output in (False, True, False):  # divided, tanh, multiplied
            logits = tape.run(logits, saves_output=keeps_output, kind="logits", consumes=True)
    return logits


def sixteen_bit_head(run: ForwardPass, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """litgpt's head: cross-entropy of 16-bit logits in chunks of 128 tokens; the caller holds the logits too."""
    tape = run.tape
    logits = _logits(run, hidden)
    outputs = tape.hold(logits)
    log_softmax = tape.run(logits, saves_output=True, kind="logits", consumes=True)
    chunk_bytes = log_softmax.number_bytes * 128 * run.program.shape.vocab_size
    loss = tape.run(
        log_softmax,
        numbers=1,
        saves=[log_softmax],
        gradient_bytes=[chunk_bytes],
        kind="logits",
        consumes=True,
    )
    tape.drop(hidden)
    return loss, outputs


def score_head(run: ForwardPass, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """A number for each sequence from hidden [N, h]: one per token, of which that of the last token counts."""
    program, tape, width = run.program, run.tape, run.program.shape.hidden_size
    x = tape.cast(hidden, program.compute_bytes)
    weight = WeightGradient(f"{run.model}score", width * program.whole_module_bytes)
    scores = tape.run(
        x, numbers=run.num_tokens, saves=[x], weights=[weight] if program.trains_head else []
    )
    tape.drop(x, hidden)
    return tape.run(scores, numbers=program.rows, number_bytes=4, consumes=True), None


def preference_head(run: ForwardPass, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """TRL's ORPO and CPO for hidden [N, h], half of them of chosen answers: from all logits [N, V], in float32.

    The cross-entropy of the chosen half takes a copy of it and keeps its log-softmax; the log-probabilities of the
    tokens keep the logits. Sources: concatenated_forward and get_batch_logps in trl/experimental/orpo/orpo_trainer.py,
    trl/kernels/logprob_entropy.py.
    """
    tape = run.tape
    logits = _logits_in_float32(run, hidden)
    half = logits.numbers // 2
    rows = tape.run(logits, numbers=0)  # views, whose gradients are tensors of their own
    chosen = tape.run(rows, numbers=half, kind="logits", gradient_bytes=[4 * half], consumes=True)
    log_softmax = tape.run(chosen, saves_output=True, kind="logits", consumes=True)
    likelihood = tape.run(log_softmax, numbers=1, saves=[log_softmax], kind="logits", consumes=True)
    return tape.run(likelihood, _log_probabilities(run, logits), numbers=1, consumes=True), None


def comparison_head(run: ForwardPass, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """SimPO: as CPO, but nothing of the chosen half is imitated."""
    return _log_probabilities(run, _logits_in_float32(run, hidden)), None


def _logits_in_float32(run: ForwardPass, hidden: Tensor) -> Tensor:
    """All logits [N, V], which accelerate's convert_outputs_to_fp32 widens once the model has returned them."""
    logits = _logits(run, hidden)
    run.tape.drop(hidden)
    return run.tape.cast(logits, 4, consumes=True)


def _log_probabilities(run: ForwardPass, logits: Tensor) -> Tensor:
    """Of the tokens, from logits [N, V], which are kept and dropped."""
    shifted = run.tape.run(logits, numbers=0)  # a view, whose gradient is a tensor of its own
    found = run.tape.run(
        shifted,
        numbers=run.num_tokens,
        saves=[logits],
        gradient_bytes=[logits.num_bytes],
        consumes=True,
    )
    run.tape.drop(logits)
    return found


HEADS: Mapping[Head, Callable[[ForwardPass, Tensor], tuple[Tensor, Tensor | None]]] = (
    MappingProxyType(
        {
            "fused": fused_head,
            "native": native_head,
            "sixteen_bit": sixteen_bit_head,
            "preference": preference_head,
            "comparison": comparison_head,
            "score": score_head,
        }
    )
)
"""hidden [N, h], which is dropped -> (loss, the outputs that the program may hold on to)."""


def _head_gradient(run: ForwardPass) -> list[WeightGradient]:
    """The gradient of the head's weight; of one that is the embedding's too, its part."""
    program, shape = run.program, run.program.shape
    if not program.trains_head:
        return []
    numbers = shape.vocab_size * shape.hidden_size
    num_bytes = numbers * program.whole_module_bytes
    if program.is_tied:
        return [WeightGradient(f"{run.model}embedding", num_bytes, is_partial=True)]
    return [WeightGradient(f"{run.model}head", num_bytes)]
