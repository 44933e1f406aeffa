"""Rotary embedding and attention kernels as operations.

Sources: apply_rotary_pos_emb and integrations/sdpa_attention.py of transformers; the flash_attn and
mem_eff_attention kernels in aten/src/ATen/native/transformers/cuda; aten/src/ATen/native/cuda/
SoftMax.cu. Shapes: B sequences, T tokens of each, N = B*T, q / k heads, d elements per head.
"""

from core.memory.ops.forward import ForwardPass
from core.memory.program import LayerKind
from core.memory.simulator import ALIASES_UPSTREAM, Tensor, round_up


def rotary_embedding(fwd: ForwardPass, x: Tensor, heads: int) -> Tensor:
    """Return `x * cos + rotate_half(x) * sin` for x [N, heads*d].

    Saves only cos and sin, which are as wide as the residual.
    """
    graph = fwd.graph
    numel = fwd.num_tokens * heads * fwd.program.shape.head_dim
    itemsize = max(x.itemsize, fwd.program.residual_itemsize)
    if fwd.program.compiles_layers:
        return graph.record(x, numel=numel, itemsize=itemsize)
    direct = graph.record(x, numel=numel, itemsize=itemsize)
    negated = graph.record(x, numel=numel // 2)
    rotated = graph.record(negated, numel=numel, consumes=True)
    crossed = graph.record(rotated, itemsize=itemsize, consumes=True)
    return graph.add(direct, crossed)


def attention(fwd: ForwardPass, q: Tensor, k: Tensor, v: Tensor, kind: LayerKind) -> Tensor:
    """Return the attention [N, q*d] of q [B, q, T, d] over k and v [B, k, T, d]."""
    has_mask = fwd.program.has_mask or kind.is_windowed
    match fwd.program.attention:
        case "eager":
            return _eager(fwd, q, k, v)
        case "flash":
            return _flash(fwd, q, k, v)
        case "sdpa" if not has_mask:
            return _flash(fwd, q, k, v)
        case _:
            return _efficient(fwd, q, k, v, has_mask)


def _flash(fwd: ForwardPass, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run FlashAttention-2. Saved: q, k, v, the output and one float32 per query (logsumexp).

    Temporary in the backward pass: the gradient of q in float32 with T rounded up to 128 and d to
    32, and one float32 per query; with grouped heads also gradients of k and v per query head.
    """
    program, shape = fwd.program, fwd.program.shape
    heads, dim = shape.num_attention_heads, shape.head_dim
    logsumexp = fwd.memory.allocate(fwd.num_tokens * heads, 4, "activations")
    kernel_bytes = 0
    if not program.on_cpu:
        num_queries = program.batch_size * heads * round_up(program.sequence_length, 128)
        kernel_bytes = num_queries * (round_up(dim, 32) + 1) * 4
        if heads != shape.num_key_value_heads:
            kernel_bytes += 2 * q.num_bytes
    keys = fwd.num_tokens * shape.num_key_value_heads * dim
    sizes = [q.num_bytes, keys * k.itemsize, keys * v.itemsize]
    out = _kernel(fwd, [q, k, v], [logsumexp], sizes, kernel_bytes)
    fwd.graph.release(logsumexp)
    return out


def _efficient(fwd: ForwardPass, q: Tensor, k: Tensor, v: Tensor, has_mask: bool) -> Tensor:
    """Run memory-efficient attention, which needs a key and value per query head.

    Saved: q, the repeated k and v, the additive mask [B, 1, T, T], the output, one float32 per
    query (T rounded up to 32). Temporary in the backward pass: one float32 per query and the
    gradient of q in float32, T and d rounded up to 64; above 128 per head the gradients of k and v
    too (workspace_size in mem_eff_attention/kernel_backward.h).
    """
    program, shape, memory = fwd.program, fwd.program.shape, fwd.memory
    tokens = program.sequence_length
    num_heads = program.batch_size * shape.num_attention_heads
    k = _repeated(fwd, k)
    v = _repeated(fwd, v)
    logsumexp = memory.allocate(num_heads * round_up(tokens, 32), 4, "activations")
    num_scores = program.batch_size * tokens**2 if has_mask else 0
    mask = memory.allocate(num_scores, program.compute_itemsize, "activations")
    num_gradients = 1 if shape.head_dim <= 128 else 3
    gradient_numel = num_gradients * round_up(tokens, 64) * round_up(shape.head_dim, 64)
    kernel_bytes = 4 * num_heads * (tokens + gradient_numel)
    out = _kernel(fwd, [q, k, v], [mask, logsumexp], [q.num_bytes] * 3, kernel_bytes)
    fwd.graph.release(mask, logsumexp, k, v)
    return out


def _kernel(
    fwd: ForwardPass, inputs: list[Tensor], more: list[Tensor], sizes: list[int], kernel_bytes: int
) -> Tensor:
    """Run a fused kernel on q, k and v, which saves them, `more` tensors and its output."""
    saves = [*inputs, *more]
    return fwd.graph.record(
        *inputs, saves=saves, saves_output=True, gradient_bytes=sizes, kernel_bytes=kernel_bytes
    )


def _eager(fwd: ForwardPass, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run eager attention: scores, scaled, capped if the family does so, masked, softmax, product.

    Saved: q, the repeated k and v, the float32 softmax [B, q, T, T] and its cast. The forward
    softmax reads float16 directly, but bfloat16 through a float32 copy
    (aten/src/ATen/native/SoftMax.cpp). The backward kernel multiplies gradient and output in a
    float32 buffer of that size, which no trace on a CPU shows.
    """
    program, shape, graph = fwd.program, fwd.program.shape, fwd.graph
    numel = program.batch_size * shape.num_attention_heads * program.sequence_length**2
    k = _repeated(fwd, k)
    v = _repeated(fwd, v)
    scores = graph.record(q, k, numel=numel, saves=[q, k], gradient_bytes=[q.num_bytes] * 2)
    if program.compiles_layers:
        weights = graph.record(scores, saves=[scores], consumes=True)
        out = _weighted_values(fwd, weights, v, q)
        graph.release(weights, v, k)
        return out
    scores = graph.record(scores, consumes=True)  # times 1 / sqrt(d)
    if shape.attn_logit_softcapping:
        for saves_output in (False, True, False):  # divided by the cap, tanh, times the cap
            scores = graph.record(scores, saves_output=saves_output, consumes=True)
    scores = graph.record(scores, gradient_bytes=[ALIASES_UPSTREAM], consumes=True)  # plus mask
    if shape.family.has_sinks:
        graph.release(k)
        return _with_sinks(fwd, scores, v, q)
    x = graph.retain(scores) if program.is_float16 else graph.cast(scores, 4)
    x = graph.record(x, itemsize=4, saves_output=True, kernel_bytes=4 * numel, consumes=True)
    weights = graph.cast(x, program.compute_itemsize, consumes=True)
    graph.release(scores)
    out = _weighted_values(fwd, weights, v, q)
    graph.release(weights, v, k)
    return graph.record(out, consumes=True)  # transpose(1, 2).contiguous()


def _with_sinks(fwd: ForwardPass, scores: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """Finish the attention of gpt-oss: one sink per head joins the scores, all in 16 bits.

    Source: eager_attention_forward in models/gpt_oss/modeling_gpt_oss.py.
    """
    graph, program = fwd.graph, fwd.program
    numel = scores.numel + scores.numel // program.sequence_length
    joined = graph.record(scores, numel=numel, gradient_bytes=[ALIASES_UPSTREAM])
    shifted = graph.record(joined, gradient_bytes=[ALIASES_UPSTREAM], consumes=True)
    kernel_bytes = numel * program.compute_itemsize
    softmax = graph.record(shifted, saves_output=True, kernel_bytes=kernel_bytes)
    graph.release(scores)
    out = _weighted_values(fwd, softmax, v, q)  # of a view of the softmax without the sink
    out = graph.record(out, consumes=True)  # transpose(1, 2).contiguous()
    graph.release(shifted, softmax, v)
    return out


def _weighted_values(fwd: ForwardPass, weights: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """Return `weights @ v`, of the size of q."""
    sizes = [weights.num_bytes, q.num_bytes]
    return fwd.graph.record(weights, v, numel=q.numel, saves=[weights, v], gradient_bytes=sizes)


def _repeated(fwd: ForwardPass, x: Tensor) -> Tensor:
    """Return keys or values per query head (`repeat_kv`); x itself if heads are not grouped."""
    shape = fwd.program.shape
    if shape.num_attention_heads == shape.num_key_value_heads:
        return fwd.graph.retain(x)
    return fwd.graph.record(x, numel=fwd.num_tokens * shape.num_attention_heads * shape.head_dim)
