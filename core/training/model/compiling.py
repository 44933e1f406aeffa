"""What makes a step faster and learns the same: layers compiled one by one, adapters that take their input as it is.

Knows what can be done; whether it is worth it, a job says.
"""

from collections.abc import Sequence
from math import prod
from types import MethodType
from typing import Any

import bitsandbytes  # noqa: F401  # makes torch.ops.bitsandbytes known
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo import config as dynamo
from torch._functorch import config as partitioner
from torch.utils import flop_counter
from torch.utils.flop_counter import register_flop_formula
from transformers.modeling_layers import GradientCheckpointingLayer

MOST_VARIANTS = 64
"""Of a compiled layer. Whether gradients are asked for, kinds of layers, rows and lengths that vary or are 1 make about
a dozen; beyond torch's own limit of 8, whatever is new would run uncompiled, and take other memory than foretold."""


def compile_layers(model: torch.nn.Module, activation_memory_budget: float = 1.0) -> None:
    """Compiles each layer of a model by itself, adapters included, when it is first called.

    One layer compiled is all compiled, as they share their code, and rows of another length cost one more compilation,
    not one each. Names of weights stay. Between 1 and 0 the budget says how much of what the backward pass could use is
    kept; the rest is recomputed, cheapest first. Where checkpointing is on, it decides alone.
    """
    dynamo.recompile_limit = MOST_VARIANTS
    partitioner.activation_memory_budget = activation_memory_budget
    partitioner.is_non_builtin_to_include = (
        True  # else 4-bit products and varlen attention are taken to cost nothing
    )
    flop_counter.sdpa_flop_count = _flops_of_attention
    if isinstance(model, PeftModel):
        model.enable_input_require_grads()  # or the first layer, whose input needs none, would be compiled apart
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
    if hasattr(
        model, "generate"
    ):  # with a cache each layer would be compiled for itself, and more than once
        writer: Any = model
        writer.generate = torch.compiler.set_stance("force_eager")(writer.generate)


@register_flop_formula(torch.ops.bitsandbytes.gemm_4bit)
def _flops_of_4_bit_product(
    x: Sequence[int], _: object, weight: Sequence[int], *__: object, **___: object
) -> int:
    """Operations of a product of x [..., in] with a 4-bit weight [out, in]: what it would cost to do it once more."""
    return 2 * prod(x[:-1]) * prod(weight)


def _flops_of_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Operations of attention over [batch, heads, tokens, width], where query heads may share keys and values.

    As torch's own formula, which in 2.11 refuses heads that share (sdpa_flop_count in torch/utils/flop_counter.py).
    """
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def take_inputs_as_they_are(model: torch.nn.Module) -> None:
    """Lets adapters under autocast leave their input in 16 bits: PEFT widens it to their own dtype, and autocast
    narrows it again for each product. Without dropout not a bit of the result differs.
    """
    adapted: Any = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    for module in adapted:
        module._cast_input_dtype = MethodType(_widened_outside_autocast, module)


def _widened_outside_autocast(module: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The input of an adapter: as PEFT has it where nothing would narrow it again."""
    if torch.is_autocast_enabled(x.device.type):
        return x
    widened: torch.Tensor = type(module)._cast_input_dtype(module, x, dtype)
    return widened
