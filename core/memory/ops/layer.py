"""One decoder layer as operations. Differences between model families are facts of the ModelShape.

Source: models/*/modeling_*.py of transformers 5.23. Shapes: B sequences, T tokens of each,
N = B*T, q / k heads, d elements per head.
"""

from core.memory.ops.attention import attention, rotary_embedding
from core.memory.ops.experts import experts
from core.memory.ops.forward import ForwardPass
from core.memory.ops.linear import linear
from core.memory.program import LayerKind
from core.memory.simulator import Tensor


def decoder_layer(fwd: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """Return `layer(x)` for hidden states x [N, hidden], which are released at the end."""
    graph, family = fwd.graph, fwd.program.shape.family
    has_norms_before = "input_layernorm" in family.layer_norms
    has_norms_after = "post_feedforward_layernorm" in family.layer_norms
    layer_input = graph.retain(x)
    for part in ("attention", "mlp"):
        residual = graph.retain(x)
        if has_norms_before:
            x = _layer_norm(fwd, x, f"{name}.{part}.norm_before")
        if part == "attention":
            y = _self_attention(fwd, x, kind, name)
        elif kind.has_experts:
            y = experts(fwd, x, name)
        else:
            y = _mlp(fwd, x, name)
        graph.release(x)
        if has_norms_after:
            y = _layer_norm(fwd, y, f"{name}.{part}.norm_after")
        if family.scales_residuals:
            y = graph.record(y, saves_constant=True, consumes=True)
        x = graph.add(residual, y)
        # both summands are saved then, so that their sum can be recomputed
        x.is_recomputable = has_norms_after and part == "attention"
    graph.release(layer_input)
    return x


def norm(fwd: ForwardPass, x: Tensor, name: str, groups: int = 1) -> Tensor:
    """Return `RMSNorm(x)` in `groups` parts per token, computed in float32, and release x.

    Saved: the float32 input (for its square and for the product) and one factor per group; if the
    weight trains, also the normalized input.
    """
    graph, program, itemsize = fwd.graph, fwd.program, x.itemsize
    if program.uses_liger:
        return _fused_norm(fwd, x, name, groups)
    x32 = graph.cast(x, 4)
    # x ** 2: its gradient is 2 * x32 times that of the square, two tensors
    square = graph.record(x32, saves=[x32], backward_bytes=2 * x32.num_bytes)
    variance = graph.record(square, numel=fwd.num_tokens * groups, consumes=True)
    factor = graph.record(variance, saves_output=True, consumes=True)
    normed = graph.record(
        x32, factor, saves=[x32, factor], backward_bytes=x32.num_bytes, consumes=True
    )
    if not program.shape.family.norm_scales_in_float32:
        normed = graph.cast(normed, itemsize, consumes=True)
    weight_numel = x.numel // fwd.num_tokens // groups
    weights = fwd.gradient_of(name, weight_numel, normed.num_bytes)
    saves = [normed] if weights else []
    scaled = graph.record(normed, saves=saves, saves_constant=True, weights=weights, consumes=True)
    graph.release(x)
    return graph.cast(scaled, itemsize, consumes=True)


def _layer_norm(fwd: ForwardPass, x: Tensor, name: str, groups: int = 1) -> Tensor:
    """Return the norm of x within a layer, which torch.compile fuses."""
    if fwd.program.uses_liger or fwd.program.compiles_layers:
        return _fused_norm(fwd, x, name, groups)
    return norm(fwd, x, name, groups)


def _fused_norm(fwd: ForwardPass, x: Tensor, name: str, groups: int) -> Tensor:
    """Return `RMSNorm(x)` by one kernel, which saves its input and one factor per group.

    A compiled one recomputes its input if it can. Source: liger_kernel/ops/rms_norm.py.
    """
    graph = fwd.graph
    factor = fwd.memory.allocate(fwd.num_tokens * groups, 4, "activations")
    weights = fwd.gradient_of(name, x.numel // fwd.num_tokens // groups)
    saves = [x, factor]
    backward_bytes = 0
    if fwd.program.compiles_layers and x.is_recomputable:
        saves = [factor]
        backward_bytes = x.num_bytes
    normed = graph.record(
        x, saves=saves, weights=weights, backward_bytes=backward_bytes, consumes=True
    )
    normed.is_recomputable = True
    graph.release(factor)
    return normed


def _self_attention(fwd: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """Project x, rotate queries and keys, attend, project: [N, hidden]."""
    program, graph, shape = fwd.program, fwd.graph, fwd.program.shape
    q, k, v = _projections(fwd, x, name)
    q_rotated = rotary_embedding(fwd, q, shape.num_attention_heads)
    k_rotated = rotary_embedding(fwd, k, shape.num_key_value_heads)
    graph.release(q, k)
    # autocast casts what the attention kernel reads
    q = graph.cast(q_rotated, program.compute_itemsize, consumes=True)
    k = graph.cast(k_rotated, program.compute_itemsize, consumes=True)
    if fwd.cache is not None:
        for each in (k, v):
            fwd.cache.append(fwd.memory.allocate(each.numel, each.itemsize, "generation_cache"))
    attended = attention(fwd, q, k, v, kind)
    graph.release(q, k, v)
    out = linear(fwd, attended, "o_proj", name)
    graph.release(attended)
    return out


def _projections(fwd: ForwardPass, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values: three views of one tensor if one linear makes them."""
    shape = fwd.program.shape
    if shape.fused_qkv:
        qkv = linear(fwd, x, "qkv_proj", name)
        return qkv, fwd.graph.retain(qkv), fwd.graph.retain(qkv)
    is_per_head = shape.qk_norm == "per_head"
    q = linear(fwd, x, "q_proj", name)
    if shape.qk_norm != "none":
        groups = shape.num_attention_heads if is_per_head else 1
        q = _layer_norm(fwd, q, f"{name}.q_norm", groups)
    k = linear(fwd, x, "k_proj", name)
    if shape.qk_norm != "none":
        groups = shape.num_key_value_heads if is_per_head else 1
        k = _layer_norm(fwd, k, f"{name}.k_norm", groups)
    return q, k, linear(fwd, x, "v_proj", name)


def _mlp(fwd: ForwardPass, x: Tensor, name: str) -> Tensor:
    """Return `down(act(gate(x)) * up(x))` [N, hidden].

    Saved: gate, act(gate), up, and their product where weights train.
    """
    graph, program, shape = fwd.graph, fwd.program, fwd.program.shape
    if program.compiles_layers or (program.uses_liger and not shape.fused_gate_up):
        product = _fused_gate(fwd, x, name)
    elif shape.fused_gate_up:
        both = linear(fwd, x, "gate_up_proj", name)
        numel = fwd.num_tokens * shape.intermediate_size
        active = graph.record(both, numel=numel, saves=[both])
        product = graph.record(both, active, numel=numel, saves=[both, active], consumes=True)
    else:
        gate = linear(fwd, x, "gate_proj", name)
        active = graph.record(gate, saves=[gate], consumes=True)
        up = linear(fwd, x, "up_proj", name)
        product = graph.record(active, up, saves=[active, up], consumes=True)
    out = linear(fwd, product, "down_proj", name)
    graph.release(product)
    return out


def _fused_gate(fwd: ForwardPass, x: Tensor, name: str) -> Tensor:
    """Return `act(gate(x)) * up(x)` by one kernel, which saves gate and up."""
    program, shape = fwd.program, fwd.program.shape
    modules = ("gate_up_proj",) if shape.fused_gate_up else ("gate_proj", "up_proj")
    parts = [linear(fwd, x, module, name) for module in modules]
    num_adapted = sum(program.has_adapter(module) for module in modules)
    if shape.fused_gate_up:
        num_adapted *= 2
    numel = fwd.num_tokens * shape.intermediate_size
    extra_bytes = _num_extra_tensors(fwd, num_adapted) * numel * parts[0].itemsize
    product = fwd.graph.record(
        *parts, numel=numel, saves=parts, backward_bytes=extra_bytes, consumes=True
    )
    product.is_recomputable = True
    return product


def _num_extra_tensors(fwd: ForwardPass, num_adapted: int) -> int:
    """Return how many more tensors of the product's size a compiled backward pass has at once.

    Inductor fuses everything between the matmuls of gate and up, of which `num_adapted` have an
    adapter, and that of down. The outputs of adapters, their gradients and recomputed tensors are
    alive at the same time; one result overwrites an input. Read from the code that Inductor
    writes (`python benchmarks/compiled_layers.py`).
    """
    program = fwd.program
    if not program.compiles_layers:
        return 0
    has_adapter_after = program.has_adapter("down_proj")
    num_recomputed = 0
    if fwd.recompute != "nothing":
        num_recomputed += int(has_adapter_after or fwd.trains)
    if fwd.recompute == "matmuls":
        num_recomputed += num_adapted + (num_adapted > 0)
    return max(0, num_adapted + has_adapter_after - 1 + num_recomputed)
