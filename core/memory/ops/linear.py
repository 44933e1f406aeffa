"""Linear layers as operations: plain, quantized, under autocast, with a LoRA adapter.

Sources: torch.nn.functional.linear; bitsandbytes/nn/modules.py (Linear4bit, Linear8bitLt);
peft/tuners/lora/layer.py and bnb.py (0.21); the autocast cache in aten/src/ATen/autocast_mode.cpp.
Shapes: B sequences, T tokens of each, N = B*T.
"""

from dataclasses import dataclass

from core.memory.ops.forward import ForwardPass
from core.memory.program import Lora, Quantization
from core.memory.simulator import ALIASES_UPSTREAM, Tensor, WeightGradient


@dataclass(frozen=True)
class Linear:
    """One linear layer of the model."""

    path: str
    """Path in the model, such as layers.0.q_proj."""
    name: str
    """Own name, such as q_proj."""
    num_out: int
    num_in: int

    @property
    def numel(self) -> int:
        """Elements of its weight."""
        return self.num_out * self.num_in


def linear(fwd: ForwardPass, x: Tensor, name: str, layer: str) -> Tensor:
    """Return `module(x)` [N, out] for x [N, in], in the precision of matmuls."""
    program = fwd.program
    module = Linear(f"{layer}.{name}", name, *program.linears[name])
    if program.quantization:
        y = _quantized(fwd, x, module, program.quantization)
    else:
        y = _plain(fwd, x, module)
    if program.lora is not None and program.has_adapter(name):
        y = _adapted(fwd, program.lora, x, y, module)
    return y


def _plain(fwd: ForwardPass, x: Tensor, module: Linear) -> Tensor:
    """Multiply by a weight as loaded. A weight that trains saves its input and gets a gradient."""
    program, graph = fwd.program, fwd.graph
    x = graph.cast(x, program.compute_itemsize) if program.autocast else graph.retain(x)
    is_copy = module.name in program.modules_to_save
    trains = fwd.trains or is_copy
    weight_itemsize = program.trained_itemsize if is_copy else program.weight_itemsize
    casts = []
    if program.autocast and weight_itemsize == 4:
        casts.append(fwd.memory.allocate(module.numel, 2, "temporary"))
    saves = [*casts]
    weights = []
    if trains:
        saves.append(x)
        # the matmul makes the gradient in 16 bits; the backward pass of the cast widens it
        cast_bytes = module.numel * 2 if casts else 0
        num_bytes = module.numel * program.trained_itemsize
        weights.append(WeightGradient(module.path, num_bytes, cast_bytes))
    numel, itemsize = fwd.num_tokens * module.num_out, program.compute_itemsize
    y = graph.record(
        x, numel=numel, itemsize=itemsize, saves=saves, saves_constant=True, weights=weights
    )
    graph.release(x)
    fwd.cache_weight_casts(casts, trains)
    return y


def _quantized(fwd: ForwardPass, x: Tensor, module: Linear, stored: Quantization) -> Tensor:
    """Multiply by a frozen 4- or 8-bit weight. The result is as wide as x; 4 bits compute in 16."""
    graph, tokens, sizes = fwd.graph, fwd.num_tokens, (module.num_out, module.num_in)
    x_math = graph.retain(x) if stored.bits == 8 else graph.cast(x, 2)
    y = graph.record(
        x_math,
        numel=tokens * module.num_out,
        saves=[x_math] if stored.saves_inputs else [],
        temporary_bytes=stored.forward_temporary_bytes(tokens, *sizes, fwd.program.is_float16),
        backward_bytes=stored.dequantized_bytes(*sizes),
    )
    has_context = x_math.requires_grad or not graph.is_recording
    if stored.keeps_inputs and fwd.kept_inputs is not None and has_context:
        fwd.kept_inputs.append(graph.retain(x_math))
    graph.release(x_math)
    return graph.cast(y, x.itemsize, consumes=True)


def _adapted(fwd: ForwardPass, lora: Lora, x: Tensor, y: Tensor, module: Linear) -> Tensor:
    """Return `y + lora_B(lora_A(dropout(x))) * scaling` [N, out], as wide as y, and release y."""
    program, graph, y_itemsize = fwd.program, fwd.graph, y.itemsize
    is_4bit = program.quantization is not None and program.quantization.bits == 4
    if is_4bit and not program.compiles_layers:  # `result = result.clone()` in peft's bnb.py
        y = graph.record(y, gradient_bytes=[ALIASES_UPSTREAM], consumes=True)
    skips_cast = program.autocast and (program.quantization or not lora.casts_input)
    # x_own is a variable of PEFT's forward(), so that it lives until forward() returns
    x_own = graph.cast(x, x.itemsize if skips_cast else lora.itemsize)
    x_in = _adapter_input(fwd, lora, x_own)
    down = _adapter_matmul(fwd, lora, x_in, f"{module.path}.lora_A", (lora.rank, module.num_in))
    up = _adapter_matmul(fwd, lora, down, f"{module.path}.lora_B", (module.num_out, lora.rank))
    if lora.use_dora:
        total = _dora(fwd, x_own, y, up, module)
    elif program.compiles_layers:  # scaling and sum are one kernel
        sizes = [ALIASES_UPSTREAM, up.num_bytes]
        total = graph.record(y, up, gradient_bytes=sizes, saves_constant=True, consumes=True)
    else:
        scaled = graph.record(up, saves_constant=True, consumes=True)
        if program.quantization and not program.autocast:
            scaled = graph.cast(scaled, y.itemsize, consumes=True)
        total = graph.add(y, scaled)
    # PEFT's layers over bitsandbytes do not cast the result back under autocast
    if not (program.quantization and program.autocast):
        total = graph.cast(total, y_itemsize, consumes=True)
    graph.release(x_own)
    return total


def _adapter_input(fwd: ForwardPass, lora: Lora, x: Tensor) -> Tensor:
    """Return the input of the adapter's first matmul: x after dropout and autocast."""
    graph = fwd.graph
    x = graph.retain(x)
    if lora.dropout:
        mask = fwd.memory.allocate(x.numel, 1, "activations")
        x = graph.record(x, saves=[mask], consumes=True)
        x.is_recomputable = True
        graph.release(mask)
    return graph.cast(x, 2 if fwd.program.autocast else lora.itemsize, consumes=True)


def _adapter_matmul(
    fwd: ForwardPass, lora: Lora, x: Tensor, name: str, shape: tuple[int, int]
) -> Tensor:
    """Return `x @ weight.T` and release x. Autocast casts a weight [out, in] wider than x."""
    numel = shape[0] * shape[1]
    saves = [x]
    cast_bytes = 0
    if lora.itemsize != x.itemsize:
        cast = fwd.memory.allocate(numel, x.itemsize, "temporary")
        cast.is_recomputable = True
        fwd.weight_casts.append(cast)
        saves.append(cast)
        cast_bytes = cast.num_bytes
    weight = WeightGradient(name, numel * lora.itemsize, cast_bytes)
    num_out = fwd.num_tokens * shape[0]
    return fwd.graph.record(x, numel=num_out, saves=saves, weights=[weight], consumes=True)


def _dora(fwd: ForwardPass, x: Tensor, y: Tensor, up: Tensor, module: Linear) -> Tensor:
    """Return `y + (scale - 1) * y + scale * up * scaling` and release y and up.

    The scale is the trained magnitude divided by the norm of the adapted weight, and makes the
    result float32. The norm is computed in every forward pass, without a gradient: for that the
    weight and lora_B(lora_A(identity [in, in])) exist in the precision of x until the function
    returns. Source: DoraLinearLayer.forward in peft 0.21.
    """
    program, graph, memory = fwd.program, fwd.graph, fwd.memory
    assert program.lora is not None
    itemsize = program.lora.itemsize
    identity_cast_bytes = 0  # autocast's copy of the identity, which lora_A saves
    if program.autocast and itemsize == 4:
        identity_cast_bytes = 2 * module.num_in**2
    memory.temporary(module.num_in**2 * itemsize + identity_cast_bytes)
    identity = memory.allocate(identity_cast_bytes if graph.is_recording else 0, 1, "temporary")
    is_copied = program.quantization is not None or program.weight_itemsize != x.itemsize
    num_matrices = 2 if is_copied else 1
    matrices = memory.allocate(module.numel * num_matrices, x.itemsize, "temporary")
    memory.temporary(2 * module.numel * x.itemsize)
    magnitude = WeightGradient(f"{module.path}.magnitude", module.num_out * 4)

    def scaled(part: Tensor) -> Tensor:
        # backward: the gradient times the scale and times the part, both float32
        products = 2 * 4 * part.numel - part.num_bytes
        weights = [magnitude]
        return graph.record(
            part, itemsize=4, saves=[part], weights=weights, backward_bytes=products
        )

    base = scaled(y)
    adapted = graph.record(scaled(up), saves_constant=True, consumes=True)
    graph.release(identity, matrices, up)
    return graph.add(y, graph.add(base, adapted))
