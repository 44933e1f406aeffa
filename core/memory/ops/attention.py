"""Rotary embedding and the attention kernels as operations.

Sources: apply_rotary_pos_emb and integrations/sdpa_attention.py of transformers; the flash_attn and mem_eff_attention
kernels in aten/src/ATen/native/transformers/cuda; aten/src/ATen/native/cuda/SoftMax.cu. Shapes: B rows, T tokens of
each, N = B*T, q / k heads, d per head.
"""

from core.memory.ops.linear import ForwardPass
from core.memory.program.program import LayerKind
from core.memory.simulator.autograd import PASSED_ON
from core.memory.simulator.device_memory import Tensor


def rotate(run: ForwardPass, x: Tensor, heads: int) -> Tensor:
    """`x * cos + rotate_half(x) * sin` for x [N, heads*d]; cos and sin, as wide as the residual, are all it keeps."""
    tape, numbers = run.tape, run.num_tokens * heads * run.program.shape.head_dim
    width = max(x.number_bytes, run.program.residual_bytes)
    if run.program.compiles_layers:
        return tape.run(x, numbers=numbers, number_bytes=width)
    direct = tape.run(x, numbers=numbers, number_bytes=width)
    negated = tape.run(x, numbers=numbers // 2)
    turned = tape.run(negated, numbers=numbers, consumes=True)
    crossed = tape.run(turned, number_bytes=width, consumes=True)
    return tape.run(direct, crossed, gradient_bytes=[PASSED_ON, PASSED_ON], consumes=True)


def attention(run: ForwardPass, q: Tensor, k: Tensor, v: Tensor, kind: LayerKind) -> Tensor:
    """Attention of q [B, q, T, d] over k and v [B, k, T, d]: [N, q*d]."""
    has_mask = run.program.has_mask or kind.is_windowed
    match run.program.attention:
        case "eager":
            return _eager(run, q, k, v)
        case "flash":
            return _flash(run, q, k, v)
        case "sdpa" if not has_mask:
            return _flash(run, q, k, v)
        case _:
            return _efficient(run, q, k, v, has_mask)


def _flash(run: ForwardPass, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention-2. Kept: q, k, v, the output and one float32 per query (logsumexp).

    Backward scratch: the gradient of q in float32 with T rounded up to 128 and d to 32, and one float32 per query;
    with grouped heads also the gradients of k and v for every query head.
    """
    program, shape, tape = run.program, run.program.shape, run.tape
    heads, dim = shape.num_attention_heads, shape.head_dim
    logsumexp = tape.heap.allocate(run.num_tokens * heads, 4, "activations")
    padded = program.rows * heads * _round_up(program.row_tokens, 128)
    ungrouped_bytes = 2 * q.num_bytes if heads != shape.num_key_value_heads else 0
    keys = run.num_tokens * shape.num_key_value_heads * dim
    out = tape.run(
        q,
        k,
        v,
        saves=[q, k, v, logsumexp],
        saves_output=True,
        backward_kernel_bytes=0
        if program.on_cpu
        else padded * (_round_up(dim, 32) + 1) * 4 + ungrouped_bytes,
        gradient_bytes=[q.num_bytes, keys * k.number_bytes, keys * v.number_bytes],
    )
    tape.drop(logsumexp)
    return out


def _efficient(run: ForwardPass, q: Tensor, k: Tensor, v: Tensor, has_mask: bool) -> Tensor:
    """Memory-efficient attention, which wants a key and value per query head, and the mask as numbers to add.

    Kept: q, the repeated k and v, the mask [B, 1, T, T], the output, one float32 per query (T rounded up to 32).
    Backward scratch: one float32 per query, and the gradient of q in float32, T and d rounded up to 64; above 128 per
    head those of k and v too (workspace_size in mem_eff_attention/kernel_backward.h).
    """
    program, shape, tape = run.program, run.program.shape, run.tape
    heads = shape.num_attention_heads
    k, v = _repeated(run, k), _repeated(run, v)
    logsumexp = tape.heap.allocate(
        program.rows * heads * _round_up(program.row_tokens, 32), 4, "activations"
    )
    scores = program.rows * program.row_tokens**2 if has_mask else 0
    mask = tape.heap.allocate(scores, program.compute_bytes, "activations")
    copies, columns = 1 if shape.head_dim <= 128 else 3, _round_up(shape.head_dim, 64)
    numbers = (
        program.rows
        * heads
        * (program.row_tokens + copies * _round_up(program.row_tokens, 64) * columns)
    )
    out = tape.run(
        q,
        k,
        v,
        saves=[q, k, v, mask, logsumexp],
        saves_output=True,
        backward_kernel_bytes=4 * numbers,
        gradient_bytes=[q.num_bytes] * 3,
    )
    tape.drop(mask, logsumexp, k, v)
    return out


def _eager(run: ForwardPass, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention spelled out: scores, scaled, (capped,) masked, softmax in float32, cast, product.

    Kept: q, the repeated k and v, the float32 softmax [B, q, T, T] and its cast. The forward kernel reads float16 but
    not bfloat16 (softmax in aten/src/ATen/native/SoftMax.cpp); the backward kernel multiplies gradient and output into
    a hidden float32 buffer of that size.
    """
    program, shape, tape = run.program, run.program.shape, run.tape
    scores = program.rows * shape.num_attention_heads * program.row_tokens**2
    k, v = _repeated(run, k), _repeated(run, v)
    weights = tape.run(q, k, numbers=scores, saves=[q, k], gradient_bytes=[q.num_bytes] * 2)
    if program.compiles_layers:
        softmax = tape.run(weights, saves=[weights], consumes=True)
        sizes = [softmax.num_bytes, q.num_bytes]
        out = tape.run(softmax, v, numbers=q.numbers, saves=[softmax, v], gradient_bytes=sizes)
        tape.drop(softmax, v, k)
        return out
    weights = tape.run(weights, consumes=True)
    if shape.attn_logit_softcapping:
        for keeps_output in (False, True, False):  # divided, tanh, multiplied
            weights = tape.run(weights, saves_output=keeps_output, consumes=True)
    weights = tape.run(weights, gradient_bytes=[PASSED_ON], consumes=True)
    if shape.family.has_sinks:
        tape.drop(k)
        return _with_sinks(run, weights, v, q)
    widened = tape.hold(weights) if program.is_float16 else tape.cast(weights, 4)
    softmax = tape.run(
        widened, number_bytes=4, saves_output=True, backward_kernel_bytes=4 * scores, consumes=True
    )
    raw, weights = weights, tape.cast(softmax, program.compute_bytes, consumes=True)
    tape.drop(raw)
    out = tape.run(
        weights,
        v,
        numbers=q.numbers,
        saves=[weights, v],
        gradient_bytes=[weights.num_bytes, q.num_bytes],
    )
    tape.drop(weights, v, k)
    return tape.run(out, consumes=True)  # transpose(1, 2).contiguous()


def _with_sinks(run: ForwardPass, weights: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """gpt-oss: a sink per head as one more score; softmax and all else in the precision of the math.

    Source: eager_attention_forward in models/gpt_oss/modeling_gpt_oss.py.
    """
    tape, program = run.tape, run.program
    numbers = weights.numbers + weights.numbers // program.row_tokens
    joined = tape.run(weights, numbers=numbers, gradient_bytes=[PASSED_ON])
    shifted = tape.run(joined, gradient_bytes=[PASSED_ON], consumes=True)
    softmax = tape.run(
        shifted, saves_output=True, backward_kernel_bytes=numbers * program.compute_bytes
    )
    tape.drop(weights)
    sizes = [softmax.num_bytes, q.num_bytes]
    out = tape.run(
        softmax, v, numbers=q.numbers, saves=[softmax, v], gradient_bytes=sizes
    )  # a view without the sink
    out = tape.run(out, consumes=True)
    tape.drop(shifted, softmax, v)
    return out


def _repeated(run: ForwardPass, x: Tensor) -> Tensor:
    """`repeat_kv`: keys or values for every query head; the same tensor if there is nothing to repeat."""
    shape = run.program.shape
    if shape.num_attention_heads == shape.num_key_value_heads:
        return run.tape.hold(x)
    return run.tape.run(x, numbers=run.num_tokens * shape.num_attention_heads * shape.head_dim)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
