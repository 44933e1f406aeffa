"""A linear layer as a sequence of operations: plain, quantised, under autocast, with a LoRA adapter beside it.

Sources: torch.nn.functional.linear; bitsandbytes/nn/modules.py (Linear4bit, Linear8bitLt); peft/tuners/lora/layer.py
and bnb.py (0.21); the autocast cache in aten/src/ATen/autocast_mode.cpp. Shapes: B rows, T tokens of each, N = B*T.
"""

from dataclasses import dataclass, field

from core.memory.heap import Tensor
from core.memory.program import Lora, Program
from core.memory.tape import PASSED_ON, Tape, WeightGradient


@dataclass
class ForwardPass:
    """One forward pass through (a part of) the model, and what outlives the operation that made it."""

    program: Program
    tape: Tape
    is_checkpointed: bool = False
    """True while the layers run only to be run again in the backward pass."""
    casts: list[Tensor] = field(default_factory=list)
    """16-bit copies of float32 weights that train, which autocast keeps until its context ends."""
    retained: list[Tensor] = field(default_factory=list)
    """Inputs that 8-bit layers keep on their own, although checkpointing would have dropped them."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the micro-batch (N)."""
        return self.program.num_tokens

    def end_autocast(self) -> None:
        """The autocast context ends and forgets its copies of the weights."""
        self.tape.drop(*self.casts)
        self.casts = []


@dataclass(frozen=True)
class Module:
    """One linear layer of the model."""

    name: str
    """Path from the model down, such as layers.0.q_proj."""
    num_out: int
    num_in: int

    @property
    def numbers(self) -> int:
        """Numbers of its weight."""
        return self.num_out * self.num_in


def linear(run: ForwardPass, x: Tensor, module_name: str, layer: str) -> Tensor:
    """`module(x)` for x [N, in]: [N, out] in the precision of the math."""
    program = run.program
    module = Module(f"{layer}.{module_name}", *program.linears[module_name])
    y = _quantized(run, x, module) if program.quantization else _plain(run, x, module)
    if program.lora is not None and program.has_adapter(module_name):
        y = _adapted(run, program.lora, x, y, module)
    return y


def _plain(run: ForwardPass, x: Tensor, module: Module) -> Tensor:
    """A product with a weight as loaded; one that trains keeps its input and makes a gradient."""
    program, tape = run.program, run.tape
    x_math = tape.cast(x, program.compute_bytes) if program.autocast else tape.hold(x)
    saves, weights, cast = [], [], None
    if program.autocast and program.weight_bytes == 4:
        cast = tape.heap.allocate(module.numbers, 2, "temporary")
        saves.append(cast)
    if program.trains_base:
        saves.append(x_math)
        scratch_bytes = module.numbers * 2 if cast else 0
        weights.append(WeightGradient(module.name, module.numbers * program.weight_bytes, scratch_bytes))
    numbers = run.num_tokens * module.num_out
    y = tape.run(x_math, numbers=numbers, number_bytes=program.compute_bytes, saves=saves, weights=weights)
    tape.drop(x_math)
    if cast is not None:
        keep_cast(run, cast)
    return y


def keep_cast(run: ForwardPass, cast: Tensor) -> None:
    """Autocast keeps its copy of a weight that trains, and drops that of a frozen one (cached_cast)."""
    if run.program.trains_base:
        run.casts.append(cast)
    else:
        run.tape.drop(cast)


def _quantized(run: ForwardPass, x: Tensor, module: Module) -> Tensor:
    """A product with a frozen 4- or 8-bit weight: in 16 bits, and cast back where the rest is float32."""
    program, tape, stored = run.program, run.tape, run.program.quantization
    assert stored is not None
    x16 = tape.cast(x, 2)
    y = tape.run(
        x16,
        numbers=run.num_tokens * module.num_out,
        saves=[x16] if stored.keeps_inputs or stored.saves_inputs else [],
        scratch_bytes=stored.forward_scratch_bytes(run.num_tokens, module.num_out, module.num_in),
        backward_scratch_bytes=stored.dequantized_bytes(module.num_out, module.num_in),
    )
    if stored.keeps_inputs and run.is_checkpointed:
        run.retained.append(tape.hold(x16))
    tape.drop(x16)
    return tape.cast(y, program.compute_bytes, consumes=True)


def _adapted(run: ForwardPass, lora: Lora, x: Tensor, y: Tensor, module: Module) -> Tensor:
    """`y = y + lora_B(lora_A(dropout(x))) * scaling`, [N, out] as wide as y."""
    program, tape = run.program, run.tape
    if program.quantization and program.quantization.bits == 4:
        y = tape.run(y, gradient_bytes=[PASSED_ON], consumes=True)  # `result.clone()`
    own_bytes = x.number_bytes if program.quantization and program.autocast else lora.number_bytes
    x_own = tape.cast(x, own_bytes)  # a variable of PEFT's forward, which lives until that returns
    x_in = _adapter_input(run, lora, x_own)
    down = _adapter_product(run, lora, x_in, f"{module.name}.lora_A", (lora.rank, module.num_in))
    up = _adapter_product(run, lora, down, f"{module.name}.lora_B", (module.num_out, lora.rank))
    if lora.use_dora:
        y = _dora(run, lora, y, up, module)
    scaled = tape.run(up, consumes=True)
    if program.quantization and not program.autocast:
        scaled = tape.cast(scaled, y.number_bytes, consumes=True)
    wide = max(y.number_bytes, scaled.number_bytes)
    gradient_bytes = [PASSED_ON if part.number_bytes == wide else part.num_bytes for part in (y, scaled)]
    total = tape.run(y, scaled, number_bytes=wide, gradient_bytes=gradient_bytes, consumes=True)
    out = tape.cast(total, y.number_bytes, consumes=True)
    tape.drop(x_own)
    return out


def _adapter_input(run: ForwardPass, lora: Lora, x: Tensor) -> Tensor:
    """The input as the first product of the adapter takes it: dropped out, then autocast."""
    program, tape = run.program, run.tape
    x_in = tape.hold(x)
    if lora.dropout:
        mask = tape.heap.allocate(x.numbers, 1, "activations")
        x_in = tape.run(x_in, saves=[mask], consumes=True)
        tape.drop(mask)
    return tape.cast(x_in, 2 if program.autocast else lora.number_bytes, consumes=True)


def _adapter_product(run: ForwardPass, lora: Lora, x: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    """`x = x @ weight.T` with a matrix [out, in] of the adapter, which autocast casts if it is wider than the math."""
    numbers = shape[0] * shape[1]
    saves, scratch_bytes = [x], 0
    if lora.number_bytes != x.number_bytes:
        cast = run.tape.heap.allocate(numbers, x.number_bytes, "temporary")
        run.casts.append(cast)
        saves, scratch_bytes = [x, cast], cast.num_bytes
    weight = WeightGradient(name, numbers * lora.number_bytes, scratch_bytes)
    return run.tape.run(x, numbers=run.num_tokens * shape[0], saves=saves, weights=[weight], consumes=True)


def _dora(run: ForwardPass, lora: Lora, y: Tensor, up: Tensor, module: Module) -> Tensor:
    """DoRA scales the columns of the adapted weight, whose norm is computed anew, without a gradient; y is dropped.

    Scratch: the identity [in, in], the adapter's product with it, the weight and their sum, each [out, in]. Both
    products are kept for the gradient of the scale. Source: DoraLinearLayer.forward in peft 0.21.
    """
    scratch_bytes = (module.num_in**2 + 3 * module.numbers) * lora.number_bytes
    magnitude = WeightGradient(f"{module.name}.magnitude", module.num_out * 4)
    scaled = run.tape.run(y, up, saves=[y, up], weights=[magnitude], scratch_bytes=scratch_bytes)
    run.tape.drop(y)
    return scaled
