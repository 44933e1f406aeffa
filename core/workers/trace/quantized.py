"""Weights of bitsandbytes layers as they are after loading, without data."""

from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn

ELEMENTS_PER_SCALE = 64
SCALES_PER_OUTER_SCALE = 256
"""Sizes of the blocks of a 4-bit weight (bitsandbytes.functional.quantize_4bit)."""


def quantize_layer(layer: Any) -> None:
    """Replace the weight of a bitsandbytes layer by a quantized one."""
    if isinstance(layer, Linear8bitLt):
        _quantize_8bit(layer)
    else:
        _quantize_4bit(layer)


def _quantize_8bit(layer: Any) -> None:
    weight = torch.empty(layer.out_features, layer.in_features, dtype=torch.int8)
    layer.weight = _frozen_parameter(weight, CB=None, SCB=None, quant_state=None)
    layer.state.CB = layer.weight.data
    layer.state.SCB = torch.empty(layer.out_features)
    # Which columns hold outliers is unknown without data. Usually none does.
    layer.state.threshold = 0.0


def _quantize_4bit(layer: Any) -> None:
    nested = getattr(layer.weight, "compress_statistics", True)
    quant_type = getattr(layer.weight, "quant_type", "nf4")
    state = _quant_state(layer, quant_type, nested)
    packed = torch.empty(layer.in_features * layer.out_features // 2, 1, dtype=torch.uint8)
    layer.weight = _frozen_parameter(
        packed, quant_state=state, compress_statistics=nested, quant_type=quant_type
    )


def _quant_state(layer: Any, quant_type: str, nested: bool) -> QuantState:
    """Return the scales of a 4-bit weight.

    One float32 per 64 elements; nested, one byte, and a float32 per 256 of those.
    """
    num_scales = -(-layer.in_features * layer.out_features // ELEMENTS_PER_SCALE)
    settings: dict[str, Any] = {
        "blocksize": ELEMENTS_PER_SCALE,
        "quant_type": quant_type,
        "shape": torch.Size((layer.out_features, layer.in_features)),
        "dtype": layer.compute_dtype,
        "code": torch.empty(16),
    }
    if not nested:
        return QuantState(torch.empty(num_scales), **settings)
    outer = QuantState(
        torch.empty(-(-num_scales // SCALES_PER_OUTER_SCALE)),
        blocksize=SCALES_PER_OUTER_SCALE,
        code=torch.empty(256),
        dtype=torch.float32,
    )
    scales = torch.empty(num_scales, dtype=torch.uint8)
    return QuantState(scales, offset=torch.empty(()), state2=outer, **settings)


def _frozen_parameter(data: Tensor, **attributes: Any) -> nn.Parameter:
    """Return a parameter with the attributes that bitsandbytes and PEFT read from theirs."""
    parameter = nn.Parameter(data, requires_grad=False)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter
