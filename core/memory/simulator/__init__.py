"""Device memory, autograd and PyTorch's caching allocator, simulated. Knows no model."""

from core.memory.simulator.allocator import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES, Allocator
from core.memory.simulator.autograd import (
    ALIASES_UPSTREAM,
    MAX_TENSORS_IN_FLIGHT,
    AutogradGraph,
    Division,
    Node,
    WeightGradient,
)
from core.memory.simulator.device_memory import ROUNDING_BYTES, DeviceMemory, Tensor, round_up

__all__ = [
    "ALIASES_UPSTREAM",
    "LARGE_SEGMENT_BYTES",
    "MAX_TENSORS_IN_FLIGHT",
    "ROUNDING_BYTES",
    "SMALL_SEGMENT_BYTES",
    "Allocator",
    "AutogradGraph",
    "DeviceMemory",
    "Division",
    "Node",
    "Tensor",
    "WeightGradient",
    "round_up",
]
