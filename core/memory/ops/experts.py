"""A mixture of experts as operations: every token goes, sorted, to k of them in grouped products.

Sources: grouped_mm_experts_forward in transformers/integrations/moe.py; GptOssExperts in models/gpt_oss. The experts
are three-dimensional parameters, which are neither quantised nor adapted. Shapes: N tokens, S = N*k pairs of a token
and an expert, w width of an expert.
"""

from core.memory.ops.linear import ForwardPass
from core.memory.program.program import LayerKind
from core.memory.simulator.autograd import WeightGradient
from core.memory.simulator.device_memory import Tensor
from core.models.shapes.families import Experts


def experts(run: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> Tensor:
    """The router's choice, and what the chosen experts make of each token: [N, hidden]."""
    tape, shape = run.tape, run.program.shape
    pairs, width, matrix = (
        _num_pairs(run),
        shape.moe_intermediate_size,
        shape.num_experts * shape.hidden_size,
    )
    scores = _product(run, x, run.num_tokens * shape.num_experts, f"{name}.router", matrix)
    shares = tape.run(scores, number_bytes=4, saves_output=True, consumes=True)
    share_bytes = 4 if _layout(run).weighs_in_float32 else run.program.compute_bytes
    weights = tape.run(shares, numbers=pairs, number_bytes=share_bytes, consumes=True)
    tokens = tape.run(x, numbers=pairs * shape.hidden_size, number_bytes=run.program.compute_bytes)
    bias = _gathered_bias(run, 2 * pairs * width)
    both = _product(run, tokens, 2 * pairs * width, f"{name}.gate_up", 2 * matrix * width)
    gated = _clamped_gate(run, both) if _has_bias(run) else _gate(run, both)
    tape.drop(bias)
    bias = _gathered_bias(run, pairs * shape.hidden_size)
    out = _product(run, gated, pairs * shape.hidden_size, f"{name}.down", matrix * width)
    tape.drop(gated)
    wide = max(out.number_bytes, share_bytes)
    weighed = tape.run(
        out,
        weights,
        number_bytes=wide,
        saves=[out, weights],
        backward_scratch_bytes=out.numbers * wide,
    )
    restored = tape.run(
        weighed, saves_constant=True, consumes=True
    )  # in the order of the tokens again
    sum_bytes = 4 if run.program.autocast else restored.number_bytes
    mixed = tape.run(
        restored, numbers=run.num_tokens * shape.hidden_size, number_bytes=sum_bytes, consumes=True
    )
    mixed = tape.cast(mixed, x.number_bytes, consumes=True)
    tape.drop(tokens, out, weights, bias)  # its names are those of a function, which end with it
    return mixed


def _num_pairs(run: ForwardPass) -> int:
    return run.num_tokens * run.program.shape.num_experts_per_tok


def _layout(run: ForwardPass) -> Experts:
    """How the family has its experts."""
    found = run.program.shape.family.experts
    assert found is not None  # no other layer has experts
    return found


def _has_bias(run: ForwardPass) -> bool:
    """True for gpt-oss, whose gate is one of its own too."""
    return _layout(run).has_bias


def _product(
    run: ForwardPass, x: Tensor, numbers: int, parameter: str, parameter_numbers: int
) -> Tensor:
    """`x @ weight` in the precision of the math, which keeps its input if the weight trains."""
    weight = WeightGradient(parameter, parameter_numbers * run.program.weight_bytes)
    saves, weights = ([x], [weight]) if run.trains else ([], [])
    return run.tape.run(
        x, numbers=numbers, number_bytes=run.program.compute_bytes, saves=saves, weights=weights
    )


def _gathered_bias(run: ForwardPass, numbers: int) -> Tensor:
    """The bias of its expert for every pair; none in most families. It is added in place."""
    return run.tape.heap.allocate(
        numbers if _has_bias(run) else 0, run.program.weight_bytes, "temporary"
    )


def _gate(run: ForwardPass, both: Tensor) -> Tensor:
    """`act(gate) * up` of views [S, w] of one tensor [S, 2w]."""
    half = both.numbers // 2
    active = run.tape.run(both, numbers=half, saves=[both], gradient_bytes=[both.num_bytes // 2])
    return run.tape.run(both, active, numbers=half, saves=[both, active], consumes=True)


def _clamped_gate(run: ForwardPass, both: Tensor) -> Tensor:
    """gpt-oss: `(up + 1) * gate * sigmoid(alpha * gate)` of clamped views, whose gradients are as large as all."""
    tape, half = run.tape, both.numbers // 2
    clamp_bytes = half * both.number_bytes
    gate = tape.run(both, numbers=half, saves=[both], backward_scratch_bytes=clamp_bytes)
    up = tape.run(both, numbers=half, saves=[both], backward_scratch_bytes=clamp_bytes)
    sigmoid = tape.run(tape.run(gate), saves_output=True, consumes=True)
    glu = tape.run(gate, sigmoid, saves=[gate, sigmoid])
    tape.drop(sigmoid)
    shifted = tape.run(up)
    gated = tape.run(shifted, glu, saves=[shifted, glu], consumes=True)
    tape.drop(gate, up, both)
    return gated
