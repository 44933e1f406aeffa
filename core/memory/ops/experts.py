"""Mixture of experts as operations: tokens are sorted by expert for grouped matmuls.

Sources: grouped_mm_experts_forward in transformers/integrations/moe.py; GptOssExperts in
models/gpt_oss. Experts are three-dimensional parameters, which are neither quantized nor adapted.
Shapes: N tokens, S = N*k pairs of a token and one of its k experts, w width of an expert.
"""

from core.memory.ops.forward import ForwardPass
from core.memory.simulator import Tensor


def experts(fwd: ForwardPass, x: Tensor, name: str) -> Tensor:
    """Return the weighted sum of what the chosen experts make of each token: [N, hidden]."""
    graph, program, shape = fwd.graph, fwd.program, fwd.program.shape
    family = shape.family.experts
    assert family is not None  # only layers with experts come here
    hidden, width = shape.hidden_size, shape.moe_intermediate_size
    num_pairs = fwd.num_tokens * shape.num_experts_per_tok
    matrix = shape.num_experts * hidden
    scores = _matmul(fwd, x, fwd.num_tokens * shape.num_experts, f"{name}.router", matrix)
    shares = graph.record(scores, itemsize=4, saves_output=True, consumes=True)
    share_itemsize = 4 if family.weighs_in_float32 else program.compute_itemsize
    weights = graph.record(shares, numel=num_pairs, itemsize=share_itemsize, consumes=True)
    tokens = graph.record(x, numel=num_pairs * hidden, itemsize=program.compute_itemsize)
    bias = _gathered_bias(fwd, 2 * num_pairs * width if family.has_bias else 0)
    both = _matmul(fwd, tokens, 2 * num_pairs * width, f"{name}.gate_up", 2 * matrix * width)
    gated = _clamped_gate(fwd, both) if family.has_bias else _gate(fwd, both)
    graph.release(bias)
    bias = _gathered_bias(fwd, num_pairs * hidden if family.has_bias else 0)
    out = _matmul(fwd, gated, num_pairs * hidden, f"{name}.down", matrix * width)
    graph.release(gated)
    itemsize = max(out.itemsize, share_itemsize)
    saves, backward_bytes = [out, weights], out.numel * itemsize
    weighted = graph.record(*saves, itemsize=itemsize, saves=saves, backward_bytes=backward_bytes)
    # back to the order of the tokens, then the sum over the k experts of each
    restored = graph.record(weighted, saves_constant=True, consumes=True)
    sum_itemsize = 4 if program.autocast else restored.itemsize
    numel = fwd.num_tokens * hidden
    total = graph.record(restored, numel=numel, itemsize=sum_itemsize, consumes=True)
    total = graph.cast(total, x.itemsize, consumes=True)
    graph.release(tokens, out, weights, bias)  # local variables of the function, which ends here
    return total


def _matmul(fwd: ForwardPass, x: Tensor, numel: int, name: str, weight_numel: int) -> Tensor:
    """Return `x @ weight` in the precision of matmuls. x is saved if the weight trains."""
    weights = fwd.gradient_of(name, weight_numel)
    saves = [x] if weights else []
    itemsize = fwd.program.compute_itemsize
    return fwd.graph.record(x, numel=numel, itemsize=itemsize, saves=saves, weights=weights)


def _gathered_bias(fwd: ForwardPass, numel: int) -> Tensor:
    """Allocate the bias of its expert for every pair, which is added in place (gpt-oss only)."""
    return fwd.memory.allocate(numel, fwd.program.weight_itemsize, "temporary")


def _gate(fwd: ForwardPass, both: Tensor) -> Tensor:
    """Return `act(gate) * up` of views [S, w] of one tensor [S, 2w], which is released."""
    half = both.numel // 2
    half_bytes = both.num_bytes // 2
    active = fwd.graph.record(both, numel=half, saves=[both], gradient_bytes=[half_bytes])
    return fwd.graph.record(both, active, numel=half, saves=[both, active], consumes=True)


def _clamped_gate(fwd: ForwardPass, both: Tensor) -> Tensor:
    """Return `(up + 1) * gate * sigmoid(alpha * gate)` of clamped views, as gpt-oss computes it.

    The gradient of each view is as large as both together.
    """
    graph, half = fwd.graph, both.numel // 2
    clamp_bytes = half * both.itemsize
    gate = graph.record(both, numel=half, saves=[both], backward_bytes=clamp_bytes)
    up = graph.record(both, numel=half, saves=[both], backward_bytes=clamp_bytes)
    sigmoid = graph.record(graph.record(gate), saves_output=True, consumes=True)
    glu = graph.record(gate, sigmoid, saves=[gate, sigmoid])
    graph.release(sigmoid)
    shifted = graph.record(up)
    gated = graph.record(shifted, glu, saves=[shifted, glu], consumes=True)
    graph.release(gate, up, both)
    return gated
