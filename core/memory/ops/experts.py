"""Mixture of experts as operations: tokens are sorted by expert for grouped matmuls.

Sources: grouped_mm_experts_forward in transformers/integrations/moe.py; GptOssExperts in
models/gpt_oss; ParamWrapper in peft/tuners/lora/layer.py (0.21). Experts are three-dimensional
parameters, which are not quantized. An adapter on them is added to a copy in each forward pass.
Shapes: N tokens, S = N*k pairs of a token and one of its k experts, w width of an expert.
"""

from core.memory.ops.forward import ForwardPass
from core.memory.simulator import Tensor, WeightGradient


def experts(fwd: ForwardPass, x: Tensor, name: str) -> Tensor:
    """Return the weighted sum of what the chosen experts make of each token: [N, hidden]."""
    graph, program, shape = fwd.graph, fwd.program, fwd.program.shape
    family = shape.family.experts
    assert family is not None  # only layers with experts come here
    hidden, width = shape.hidden_size, shape.moe_intermediate_size
    num_pairs = fwd.num_tokens * shape.num_experts_per_tok
    matrix = shape.num_experts * hidden
    copies: list[Tensor] = []
    router = (f"{name}.router", f"mlp.{family.router}.weight", matrix)
    scores = _matmul(fwd, x, fwd.num_tokens * shape.num_experts, router, copies)
    shares = graph.record(scores, itemsize=4, saves_output=True, consumes=True)
    share_itemsize = 4 if family.weighs_in_float32 else program.compute_itemsize
    weights = graph.record(shares, numel=num_pairs, itemsize=share_itemsize, consumes=True)
    tokens = graph.record(x, numel=num_pairs * hidden, itemsize=program.compute_itemsize)
    bias = _gathered_bias(fwd, 2 * num_pairs * width if family.has_bias else 0)
    gate_up = (f"{name}.gate_up", "mlp.experts.gate_up_proj", 2 * matrix * width)
    both = _matmul(fwd, tokens, 2 * num_pairs * width, gate_up, copies)
    gated = _clamped_gate(fwd, both) if family.has_bias else _gate(fwd, both)
    graph.release(bias)
    bias = _gathered_bias(fwd, num_pairs * hidden if family.has_bias else 0)
    down = (f"{name}.down", "mlp.experts.down_proj", matrix * width)
    out = _matmul(fwd, gated, num_pairs * hidden, down, copies)
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
    graph.release(*copies)  # PEFT keeps them for as long
    return total


def _matmul(
    fwd: ForwardPass, x: Tensor, numel: int, weight: tuple[str, str, int], copies: list[Tensor]
) -> Tensor:
    """Return `x @ weight` in the precision of matmuls. x is saved if the weight trains.

    `weight` has its name, its name within a layer and its elements. One with an adapter is copied,
    and the copy added to `copies`.
    """
    name, parameter, weight_numel = weight
    itemsize = fwd.program.compute_itemsize
    changed = _changed(fwd, name, parameter, weight_numel)
    if changed is not None:
        copies.append(changed)
        return fwd.graph.record(x, changed, numel=numel, itemsize=itemsize, saves=[x, changed])
    weights = fwd.gradient_of(name, weight_numel)
    saves = [x] if weights else []
    return fwd.graph.record(x, numel=numel, itemsize=itemsize, saves=saves, weights=weights)


def _changed(fwd: ForwardPass, name: str, parameter: str, numel: int) -> Tensor | None:
    """Return the sum of a weight and its adapter, as large as the weight; None without one.

    Its gradient is as large, too. That of the adapter is made of it, and of 16-bit copies of the
    two matrices.
    """
    program = fwd.program
    rank = program.lora.expert_rank(parameter) if program.lora else 0
    if program.lora is None or not rank:
        return None
    sizes = program.shape.expert_matrices(parameter, rank)
    width = program.unquantized_itemsize
    casts = []
    if program.lora.itemsize != width:
        casts = [fwd.memory.allocate(size, width, "temporary") for size in sizes]
    weights = [
        WeightGradient(f"{name}.lora_{side}", size * program.lora.itemsize)
        for side, size in zip("AB", sizes, strict=True)
    ]
    changed = fwd.graph.record(
        numel=numel, itemsize=width, saves=casts, saves_constant=True, weights=weights
    )
    fwd.graph.release(*casts)
    return changed


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
