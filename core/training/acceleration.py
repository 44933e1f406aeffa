"""What makes a step faster and learns the same: layers compiled one by one, adapters that take their input as it is.

Knows what can be done; whether it is worth it, a job says.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._functorch import config as partitioner
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: torch.nn.Module, activation_memory_budget: float = 1.0) -> None:
    """Compiles each layer of a model by itself, adapters included, when it is first called.

    One layer compiled is all compiled, as they share their code, and rows of another length cost one more compilation,
    not one each. Names of weights stay. Between 1 and 0 the budget says how much of what the backward pass could use is
    kept; the rest is recomputed, cheapest first. Where checkpointing is on, it decides alone.
    """
    partitioner.activation_memory_budget = activation_memory_budget
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def take_inputs_as_they_are(model: torch.nn.Module) -> None:
    """Lets adapters under autocast leave their input in 16 bits: PEFT widens it to their own dtype, and autocast
    narrows it again for each product. Without dropout not a bit of the result differs.
    """
    adapted: Any = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    for module in adapted:
        module._cast_input_dtype = MethodType(_widened_outside_autocast, module)


def _widened_outside_autocast(module: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The input of an adapter: as PEFT has it where nothing would narrow it again, as when answers are drawn."""
    if torch.is_autocast_enabled(x.device.type):
        return x
    widened: torch.Tensor = type(module)._cast_input_dtype(module, x, dtype)
    return widened
