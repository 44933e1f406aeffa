"""One decoder layer as a sequence of operations. What differs between families are facts of the ModelShape.

Source: models/*/modeling_*.py of transformers 5.23. Shapes: B rows, T tokens of each, N = B*T, q / k heads, d per
head.
"""

from core.memory.attention import attention, rotate
from core.memory.heap import Tensor
from core.memory.linear import ForwardPass, linear
from core.memory.program import LayerKind
from core.memory.tape import PASSED_ON, WeightGradient


def decoder_layer(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """`x = layer(x)` for hidden states [N, hidden] in the precision of the residual."""
    norms = run.program.shape.family.layer_norms
    has_norms_before, has_norms_after = "input_layernorm" in norms, "post_feedforward_layernorm" in norms
    for part, sublayer in (("attention", _self_attention), ("mlp", _experts if kind.has_experts else _mlp)):
        residual = run.tape.hold(x)
        if has_norms_before:
            x = norm(run, x, f"{name}.{part}.norm_before")
        mixed = sublayer(run, x, kind, name)
        run.tape.drop(x)
        if has_norms_after:
            mixed = norm(run, mixed, f"{name}.{part}.norm_after")
        x = _residual_sum(run, residual, mixed)
    return x


def norm(run: ForwardPass, x: Tensor, name: str, groups: int = 1) -> Tensor:
    """`x = RMSNorm(x)` in `groups` parts per token, computed in float32.

    Kept: the float32 input (for its square and for the product) and one factor per group; if the weight trains, also
    the normed input.
    """
    tape, program, width = run.tape, run.program, x.number_bytes
    x32 = tape.cast(x, 4)
    square = tape.run(x32, saves=[x32], backward_scratch_bytes=x32.num_bytes)
    variance = tape.run(square, numbers=run.num_tokens * groups, consumes=True)
    factor = tape.run(variance, saves_output=True, consumes=True)
    normed = tape.run(x32, factor, saves=[x32, factor], backward_scratch_bytes=x32.num_bytes, consumes=True)
    if not program.shape.family.norm_scales_in_float32:
        normed = tape.cast(normed, width, consumes=True)
    weight_bytes = x.numbers // run.num_tokens // groups * program.weight_bytes
    trained = [WeightGradient(name, weight_bytes, normed.num_bytes)] if program.trains_base else []
    scaled = tape.run(normed, saves=[normed] if trained else [], weights=trained, consumes=True)
    tape.drop(x)
    return tape.cast(scaled, width, consumes=True)


def _residual_sum(run: ForwardPass, x: Tensor, mixed: Tensor) -> Tensor:
    """`x + mixed`, as wide as x; both are dropped."""
    gradient_bytes = [PASSED_ON, PASSED_ON if mixed.number_bytes == x.number_bytes else mixed.num_bytes]
    return run.tape.run(x, mixed, gradient_bytes=gradient_bytes, consumes=True)


def _self_attention(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """Projections, rotation, attention, projection: [N, hidden]."""
    program, tape, shape = run.program, run.tape, run.program.shape
    q, k, v = _projections(run, x, name)
    q_rotated = rotate(run, q, shape.num_attention_heads)
    k_rotated = rotate(run, k, shape.num_key_value_heads)
    tape.drop(q, k)
    q = tape.cast(q_rotated, program.compute_bytes, consumes=True)  # autocast, in front of the kernel
    k = tape.cast(k_rotated, program.compute_bytes, consumes=True)
    mixed = attention(run, q, k, v, kind)
    tape.drop(q, k, v)
    out = linear(run, mixed, "o_proj", name)
    tape.drop(mixed)
    return out


def _projections(run: ForwardPass, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; three views of one tensor if one layer makes them."""
    shape = run.program.shape
    if shape.fused_qkv:
        qkv = linear(run, x, "qkv_proj", name)
        return qkv, run.tape.hold(qkv), run.tape.hold(qkv)
    q = _normed_heads(run, linear(run, x, "q_proj", name), f"{name}.q_norm", shape.num_attention_heads)
    k = _normed_heads(run, linear(run, x, "k_proj", name), f"{name}.k_norm", shape.num_key_value_heads)
    return q, k, linear(run, x, "v_proj", name)


def _normed_heads(run: ForwardPass, x: Tensor, name: str, heads: int) -> Tensor:
    """Queries or keys, normed per head or all at once where the family does so."""
    span = run.program.shape.qk_norm
    return x if span == "none" else norm(run, x, name, heads if span == "per_head" else 1)


def _mlp(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """`down(act(gate(x)) * up(x))`: [N, hidden]. Kept: gate, act(gate), up, and the product where weights train."""
    tape, shape = run.tape, run.program.shape
    if shape.fused_gate_up:
        both = linear(run, x, "gate_up_proj", name)
        active = tape.run(both, numbers=run.num_tokens * shape.intermediate_size, saves=[both])
        product = tape.run(both, active, numbers=active.numbers, saves=[both, active], consumes=True)
    else:
        active = _activated(run, linear(run, x, "gate_proj", name))
        up = linear(run, x, "up_proj", name)
        product = tape.run(active, up, saves=[active, up], consumes=True)
    out = linear(run, product, "down_proj", name)
    tape.drop(product)
    return out


def _activated(run: ForwardPass, gate: Tensor) -> Tensor:
    """`act(gate)`, which keeps its input."""
    return run.tape.run(gate, saves=[gate], consumes=True)


def _experts(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """A mixture of experts: every token goes, sorted, to k of them in grouped products: [N, hidden].

    Source: grouped_mm_experts_forward in transformers/integrations/moe.py. The experts are three-dimensional
    parameters, which are neither quantised nor adapted.
    """
    program, tape, shape = run.program, run.tape, run.program.shape
    chosen, width, trains = run.num_tokens * shape.num_experts_per_tok, shape.moe_intermediate_size, program.trains_base

    def product(x: Tensor, numbers: int, parameter: str, parameter_numbers: int, consumes: bool = True) -> Tensor:
        weight = WeightGradient(f"{name}.{parameter}", parameter_numbers * program.weight_bytes)
        saves, weights = ([x], [weight]) if trains else ([], [])
        return tape.run(
            x, numbers=numbers, number_bytes=program.compute_bytes, saves=saves, weights=weights, consumes=consumes
        )

    matrix = shape.num_experts * shape.hidden_size * width
    scores = product(x, run.num_tokens * shape.num_experts, "router", shape.hidden_size * shape.num_experts, False)
    shares = tape.run(scores, number_bytes=4, saves_output=True, consumes=True)
    weights = tape.run(shares, numbers=chosen, consumes=True)
    tokens = tape.run(x, numbers=chosen * shape.hidden_size, number_bytes=program.compute_bytes)
    both = product(tokens, chosen * 2 * width, "gate_up", 2 * matrix)
    active = tape.run(both, numbers=chosen * width, saves=[both], gradient_bytes=[both.num_bytes // 2])
    gated = tape.run(both, active, numbers=chosen * width, saves=[both, active], consumes=True)
    out = product(gated, chosen * shape.hidden_size, "down", matrix)
    weighed = tape.run(out, weights, saves=[out, weights], backward_scratch_bytes=out.num_bytes, consumes=True)
    restored = tape.run(weighed, consumes=True)
    return tape.run(restored, numbers=run.num_tokens * shape.hidden_size, consumes=True)
