"""Make a step faster with the same result: compile layers one by one, skip needless casts."""

from collections.abc import Sequence
from math import prod
from types import MethodType
from typing import Any

import bitsandbytes  # noqa: F401  # registers torch.ops.bitsandbytes
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo import config as dynamo
from torch._functorch import config as partitioner
from torch.utils import flop_counter
from torch.utils.flop_counter import register_flop_formula
from transformers.modeling_layers import GradientCheckpointingLayer

MAX_VARIANTS = 64
"""Compiled variants of a layer. With and without gradients, kinds of layers, and rows and lengths
that vary or are 1 make about a dozen. Beyond torch's own limit of 8, new ones would run uncompiled
and take other memory than estimated."""


def compile_layers(model: torch.nn.Module, activation_memory_budget: float = 1.0) -> None:
    """Compile each layer of a model by itself, adapters included, when it is first called.

    Layers share their code, so one compilation serves all, and all other row lengths cost one more.
    Names of weights stay. A budget between 0 and 1 is the share of activations that is kept; the
    rest is recomputed, cheapest first. Checkpointing, where it is on, overrides the budget.
    """
    dynamo.recompile_limit = MAX_VARIANTS
    partitioner.activation_memory_budget = activation_memory_budget
    # Otherwise 4-bit products and varlen attention count as free to recompute.
    partitioner.is_non_builtin_to_include = True
    flop_counter.sdpa_flop_count = _attention_flops
    if isinstance(model, PeftModel):
        # Otherwise the first layer, whose input needs no gradient, would be compiled separately.
        model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
    if hasattr(model, "generate"):
        # With a cache, each layer would be compiled for itself, and more than once.
        generator: Any = model
        generator.generate = torch.compiler.set_stance("force_eager")(generator.generate)


@register_flop_formula(torch.ops.bitsandbytes.gemm_4bit)
def _gemm_4bit_flops(
    x: Sequence[int], _: object, weight: Sequence[int], *__: object, **___: object
) -> int:
    """Return the FLOPs of a product of x [..., in] with a 4-bit weight [out, in]."""
    return 2 * prod(x[:-1]) * prod(weight)


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Return the FLOPs of attention over [batch, heads, tokens, width]; heads may share keys.

    Same as torch's own formula, which in 2.11 refuses shared keys (sdpa_flop_count in
    torch/utils/flop_counter.py).
    """
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def skip_adapter_input_cast(model: torch.nn.Module) -> None:
    """Let adapters under autocast take their input in 16 bits.

    PEFT casts it to the adapter's own precision, and autocast casts it back for each product.
    Without dropout the results are equal to the bit.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer._cast_input_dtype = MethodType(_cast_outside_autocast, layer)


def _cast_outside_autocast(layer: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Replace a layer's own `_cast_input_dtype`."""
    if torch.is_autocast_enabled(x.device.type):
        return x
    cast: torch.Tensor = type(layer)._cast_input_dtype(layer, x, dtype)
    return cast
