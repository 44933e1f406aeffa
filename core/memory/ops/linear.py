"""A linear layer as a sequence of operations: plain, quantised, under autocast, with a LoRA adapter beside it.

Sources: torch.nn.functional.linear; bitsandbytes/nn/modules.py (Linear4bit, Linear8bitLt); peft/tuners/lora/layer.py
and bnb.py (0.21); the autocast cache in aten/src/ATen/autocast_mode.cpp. Shapes: B rows, T tokens of each, N = B*T.
"""

from dataclasses import dataclass, field
from typing import Literal

from core.memory.program.program import Lora, Program
from core.memory.simulator.autograd import PASSED_ON, Tape, WeightGradient
from core.memory.simulator.device_memory import Tensor

Again = Literal["nothing", "pointwise", "products"]
"""What the backward pass of a compiled layer computes again: nothing of what it could keep, all but products, or some
of those too."""


@dataclass
class ForwardPass:
    """One forward pass through (a part of) the model, and what outlives the operation that made it."""

    program: Program
    tape: Tape
    trains: bool = False
    """True while the weights at work train themselves."""
    again: Again = "nothing"
    cache: list[Tensor] | None = None
    """Copies of keys and values that generation keeps; None keeps none."""
    model: str = ""
    """In front of the names of parameters: which of several models that train."""
    casts: list[Tensor] = field(default_factory=list)
    """16-bit copies of float32 weights that train, which autocast keeps until its context ends."""
    retained: list[Tensor] | None = None
    """Inputs that 8-bit layers keep on their own until the whole graph is gone; None if nothing is kept."""

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
    def own_name(self) -> str:
        """Such as q_proj."""
        return self.name.rsplit(".", 1)[-1]

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
    is_copy = module.own_name in program.saved_modules
    if program.autocast and (program.whole_module_bytes if is_copy else program.weight_bytes) == 4:
        cast = tape.heap.allocate(module.numbers, 2, "temporary")
        saves.append(cast)
    if run.trains or is_copy:
        saves.append(x_math)
        scratch_bytes = module.numbers * 2 if cast else 0
        weights.append(
            WeightGradient(module.name, module.numbers * program.whole_module_bytes, scratch_bytes)
        )
    numbers = run.num_tokens * module.num_out
    y = tape.run(
        x_math,
        numbers=numbers,
        number_bytes=program.compute_bytes,
        saves=saves,
        saves_constant=True,
        weights=weights,
    )
    tape.drop(x_math)
    if cast is not None:
        keep_cast(run, cast, run.trains or is_copy)
    return y


def keep_cast(run: ForwardPass, cast: Tensor, trains: bool) -> None:
    """Autocast keeps its copy of a weight that trains, and drops that of a frozen one (cached_cast)."""
    if trains:
        run.casts.append(cast)
    else:
        run.tape.drop(cast)


def _quantized(run: ForwardPass, x: Tensor, module: Module) -> Tensor:
    """A product with a frozen 4- or 8-bit weight, as wide as its input; a 4-bit one computes in 16 bits."""
    program, tape, stored = run.program, run.tape, run.program.quantization
    assert stored is not None
    x_math = tape.hold(x) if stored.bits == 8 else tape.cast(x, 2)
    y = tape.run(
        x_math,
        numbers=run.num_tokens * module.num_out,
        saves=[x_math] if stored.saves_inputs else [],
        scratch_bytes=stored.forward_scratch_bytes(
            run.num_tokens, module.num_out, module.num_in, program.is_float16
        ),
        backward_scratch_bytes=stored.dequantized_bytes(module.num_out, module.num_in),
    )
    if (
        stored.keeps_inputs
        and run.retained is not None
        and (x_math.requires_grad or not tape.is_recording)
    ):
        run.retained.append(tape.hold(x_math))
    tape.drop(x_math)
    return tape.cast(y, x.number_bytes, consumes=True)


def _adapted(run: ForwardPass, lora: Lora, x: Tensor, y: Tensor, module: Module) -> Tensor:
    """`y = y + lora_B(lora_A(dropout(x))) * scaling`, [N, out] as wide as y."""
    program, tape, out_bytes = run.program, run.tape, y.number_bytes
    if program.quantization and program.quantization.bits == 4 and not program.compiles_layers:
        y = tape.run(y, gradient_bytes=[PASSED_ON], consumes=True)  # `result.clone()`
    takes_as_is = program.autocast and (program.quantization or not lora.widens_input)
    own_bytes = x.number_bytes if takes_as_is else lora.number_bytes
    x_own = tape.cast(x, own_bytes)  # a variable of PEFT's forward, which lives until that returns
    x_in = _adapter_input(run, lora, x_own)
    down = _adapter_product(run, lora, x_in, f"{module.name}.lora_A", (lora.rank, module.num_in))
    up = _adapter_product(run, lora, down, f"{module.name}.lora_B", (module.num_out, lora.rank))
    if lora.use_dora:
        total = _dora(run, lora, (x_own, y, up), module)
    elif program.compiles_layers:
        total = tape.run(
            y, up, gradient_bytes=[PASSED_ON, up.num_bytes], saves_constant=True, consumes=True
        )
    else:
        scaled = tape.run(up, saves_constant=True, consumes=True)
        if program.quantization and not program.autocast:
            scaled = tape.cast(scaled, y.number_bytes, consumes=True)
        total = tape.add(y, scaled)
    keeps_width = (
        program.quantization and program.autocast
    )  # PEFT's layers over bitsandbytes cast nothing back then
    out = total if keeps_width else tape.cast(total, out_bytes, consumes=True)
    tape.drop(x_own)
    return out


def _adapter_input(run: ForwardPass, lora: Lora, x: Tensor) -> Tensor:
    """The input as the first product of the adapter takes it: dropped out, then autocast."""
    program, tape = run.program, run.tape
    x_in = tape.hold(x)
    if lora.dropout:
        mask = tape.heap.allocate(x.numbers, 1, "activations")
        x_in = tape.run(x_in, saves=[mask], consumes=True)
        x_in.is_remade = True
        tape.drop(mask)
    return tape.cast(x_in, 2 if program.autocast else lora.number_bytes, consumes=True)


def _adapter_product(
    run: ForwardPass, lora: Lora, x: Tensor, name: str, shape: tuple[int, int]
) -> Tensor:
    """`x = x @ weight.T` with a matrix [out, in] of the adapter, which autocast casts if it is wider than the math."""
    numbers = shape[0] * shape[1]
    saves, scratch_bytes = [x], 0
    if lora.number_bytes != x.number_bytes:
        cast = run.tape.heap.allocate(numbers, x.number_bytes, "temporary")
        cast.is_remade = True
        run.casts.append(cast)
        saves, scratch_bytes = [x, cast], cast.num_bytes
    weight = WeightGradient(name, numbers * lora.number_bytes, scratch_bytes)
    return run.tape.run(
        x, numbers=run.num_tokens * shape[0], saves=saves, weights=[weight], consumes=True
    )


def _dora(
    run: ForwardPass, lora: Lora, parts: tuple[Tensor, Tensor, Tensor], module: Module
) -> Tensor:
    """`y + (scale - 1) * y + scale * up * scaling` for x, y, up; float32 as the scale is; y and up are dropped.

    The scale is the magnitude, which trains, over the norm of the adapted weight, which is computed anew, without a
    gradient. For that the weight and the adapter's product with an identity [in, in] are there in the precision of x,
    as long as the function runs. Source: DoraLinearLayer.forward in peft 0.21.
    """
    (x, y, up), tape, heap = parts, run.tape, run.tape.heap
    width = x.number_bytes
    is_copied = run.program.quantization is not None or run.program.weight_bytes != width
    identity_bytes = (
        2 * module.num_in**2 if run.program.autocast and lora.number_bytes == 4 else 0
    )  # cast, and saved
    heap.scratch(module.num_in**2 * lora.number_bytes + identity_bytes)
    identity = heap.allocate(identity_bytes if tape.is_recording else 0, 1, "temporary")
    matrices = heap.allocate(module.numbers * (2 if is_copied else 1), width, "temporary")
    heap.scratch(2 * module.numbers * width)
    magnitude = WeightGradient(f"{module.name}.magnitude", module.num_out * 4)

    def scaled(part: Tensor) -> Tensor:
        products_bytes = (
            2 * 4 * part.numbers - part.num_bytes
        )  # with the scale and with the part, both float32
        return tape.run(
            part,
            number_bytes=4,
            saves=[part],
            weights=[magnitude],
            backward_scratch_bytes=products_bytes,
        )

    base = scaled(y)
    adapted = tape.run(scaled(up), saves_constant=True, consumes=True)
    tape.drop(identity, matrices, up)
    return tape.add(y, tape.add(base, adapted))
