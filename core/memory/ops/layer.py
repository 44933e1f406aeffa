"""One decoder layer as a sequence of operations. What differs between families are facts of the ModelShape.

Source: models/*/modeling_*.py of transformers 5.23. Shapes: B rows, T tokens of each, N = B*T, q / k heads, d per
head.
"""

from core.memory.ops.attention import attention, rotate
from core.memory.ops.experts import experts
from core.memory.ops.linear import ForwardPass, linear
from core.memory.program.program import LayerKind
from core.memory.simulator.autograd import WeightGradient
from core.memory.simulator.device_memory import Tensor


def decoder_layer(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """`x = layer(x)` for hidden states [N, hidden] in the precision of the residual. The old x lives until then."""
    given = run.tape.hold(x)
    norms = run.program.shape.family.layer_norms
    has_norms_before, has_norms_after = (
        "input_layernorm" in norms,
        "post_feedforward_layernorm" in norms,
    )
    for part, sublayer in (
        ("attention", _self_attention),
        ("mlp", experts if kind.has_experts else _mlp),
    ):
        residual = run.tape.hold(x)
        if has_norms_before:
            x = _layer_norm(run, x, f"{name}.{part}.norm_before")
        mixed = sublayer(run, x, kind, name)
        run.tape.drop(x)
        if has_norms_after:
            mixed = _layer_norm(run, mixed, f"{name}.{part}.norm_after")
        if run.program.shape.family.scales_residuals:
            mixed = run.tape.run(mixed, saves_constant=True, consumes=True)
        x = run.tape.add(residual, mixed)
        x.is_remade = has_norms_after and part == "attention"  # both summands are kept
    run.tape.drop(given)
    return x


def norm(run: ForwardPass, x: Tensor, name: str, groups: int = 1) -> Tensor:
    """`x = RMSNorm(x)` in `groups` parts per token, computed in float32.

    Kept: the float32 input (for its square and for the product) and one factor per group; if the weight trains, also
    the normed input.
    """
    tape, program, width = run.tape, run.program, x.number_bytes
    if program.uses_liger:
        return _fused_norm(run, x, name, groups)
    x32 = tape.cast(x, 4)
    square = tape.run(
        x32, saves=[x32], backward_scratch_bytes=2 * x32.num_bytes
    )  # 2 * x32 ** 1, times the gradient
    variance = tape.run(square, numbers=run.num_tokens * groups, consumes=True)
    factor = tape.run(variance, saves_output=True, consumes=True)
    normed = tape.run(
        x32, factor, saves=[x32, factor], backward_scratch_bytes=x32.num_bytes, consumes=True
    )
    if not program.shape.family.norm_scales_in_float32:
        normed = tape.cast(normed, width, consumes=True)
    weight_bytes = x.numbers // run.num_tokens // groups * program.weight_bytes
    trained = [WeightGradient(name, weight_bytes, normed.num_bytes)] if run.trains else []
    scaled = tape.run(
        normed,
        saves=[normed] if trained else [],
        saves_constant=True,
        weights=trained,
        consumes=True,
    )
    tape.drop(x)
    return tape.cast(scaled, width, consumes=True)


def _layer_norm(run: ForwardPass, x: Tensor, name: str, groups: int = 1) -> Tensor:
    """A norm within a layer."""
    return (_fused_norm if run.program.fuses_layers else norm)(run, x, name, groups)


def _fused_norm(run: ForwardPass, x: Tensor, name: str, groups: int) -> Tensor:
    """The same by one kernel, which keeps its input and one factor per group (liger_kernel/ops/rms_norm.py). A compiled
    one makes its input anew where it can."""
    tape, weight_bytes = run.tape, x.numbers // run.num_tokens // groups * run.program.weight_bytes
    factor = tape.heap.allocate(run.num_tokens * groups, 4, "activations")
    trained = [WeightGradient(name, weight_bytes)] if run.trains else []
    is_remade = run.program.compiles_layers and x.is_remade
    normed = tape.run(
        x,
        saves=[factor] if is_remade else [x, factor],
        weights=trained,
        backward_scratch_bytes=x.num_bytes if is_remade else 0,
        consumes=True,
    )
    normed.is_remade = True
    tape.drop(factor)
    return normed


def _self_attention(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """Projections, rotation, attention, projection: [N, hidden]."""
    program, tape, shape = run.program, run.tape, run.program.shape
    q, k, v = _projections(run, x, name)
    q_rotated = rotate(run, q, shape.num_attention_heads)
    k_rotated = rotate(run, k, shape.num_key_value_heads)
    tape.drop(q, k)
    q = tape.cast(
        q_rotated, program.compute_bytes, consumes=True
    )  # autocast, in front of the kernel
    k = tape.cast(k_rotated, program.compute_bytes, consumes=True)
    if run.cache is not None:
        run.cache += [
            tape.heap.allocate(each.numbers, each.number_bytes, "generation_cache")
            for each in (k, v)
        ]
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
    q = _normed_heads(
        run, linear(run, x, "q_proj", name), f"{name}.q_norm", shape.num_attention_heads
    )
    k = _normed_heads(
        run, linear(run, x, "k_proj", name), f"{name}.k_norm", shape.num_key_value_heads
    )
    return q, k, linear(run, x, "v_proj", name)


def _normed_heads(run: ForwardPass, x: Tensor, name: str, heads: int) -> Tensor:
    """Queries or keys, normed per head or all at once where the family does so."""
    span = run.program.shape.qk_norm
    return x if span == "none" else _layer_norm(run, x, name, heads if span == "per_head" else 1)


def _mlp(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """`down(act(gate(x)) * up(x))`: [N, hidden]. Kept: gate, act(gate), up, and the product where weights train."""
    tape, shape = run.tape, run.program.shape
    if run.program.compiles_layers or (run.program.uses_liger and not shape.fused_gate_up):
        product = _fused_gate(run, x, name)
    elif shape.fused_gate_up:
        both = linear(run, x, "gate_up_proj", name)
        active = tape.run(both, numbers=run.num_tokens * shape.intermediate_size, saves=[both])
        product = tape.run(
            both, active, numbers=active.numbers, saves=[both, active], consumes=True
        )
    else:
        active = _activated(run, linear(run, x, "gate_proj", name))
        up = linear(run, x, "up_proj", name)
        product = tape.run(active, up, saves=[active, up], consumes=True)
    out = linear(run, product, "down_proj", name)
    tape.drop(product)
    return out


def _fused_gate(run: ForwardPass, x: Tensor, name: str) -> Tensor:
    """`act(gate(x)) * up(x)` by one kernel, which keeps gate and up."""
    tape, shape = run.tape, run.program.shape
    modules = ("gate_up_proj",) if shape.fused_gate_up else ("gate_proj", "up_proj")
    parts = [linear(run, x, module, name) for module in modules]
    numbers = run.num_tokens * shape.intermediate_size
    num_adapted = sum(map(run.program.has_adapter, modules)) * (2 if shape.fused_gate_up else 1)
    scratch_bytes = _num_unmerged(run, num_adapted) * numbers * parts[0].number_bytes
    product = tape.run(
        *parts, numbers=numbers, saves=parts, backward_scratch_bytes=scratch_bytes, consumes=True
    )
    product.is_remade = True
    return product


def _num_unmerged(run: ForwardPass, num_adapted: int) -> int:
    """Tensors as large as the product that the backward pass of a compiled layer has beside those of an uncompiled one.

    Inductor makes one kernel of all between the products of gate and up, of which so many are adapted, and that of
    down. What an adapter adds, its gradient, and what is computed again are there at once; one result is written over
    what it is made of (`python benchmarks/compiled_layers.py` reads that in the code it writes).
    """
    program = run.program
    if not program.compiles_layers:
        return 0
    is_adapted_after = program.has_adapter("down_proj")
    product = int(is_adapted_after or run.trains)
    again = {
        "nothing": 0,
        "pointwise": product,
        "products": product + num_adapted + (num_adapted > 0),
    }
    return max(0, num_adapted + is_adapted_after - 1 + again[run.again])


def _activated(run: ForwardPass, gate: Tensor) -> Tensor:
    """`act(gate)`, which keeps its input."""
    return run.tape.run(gate, saves=[gate], consumes=True)
