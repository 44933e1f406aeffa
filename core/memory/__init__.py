"""The memory estimate: simulates every tensor of a training step, op by op, and PyTorch's allocator under it.

`estimate` is the door. Pure Python: imports no torch, reads no disk.
"""

from core.memory.estimate import Component, MemoryEstimate, estimate

__all__ = ["Component", "MemoryEstimate", "estimate"]
