"""The memory estimate: simulates every tensor of a training step, op by op, and PyTorch's allocator under it.

`estimate` is the door. Pure Python: imports no torch, reads no disk.
"""

from core.memory.calibration import PastRun, refine
from core.memory.estimate import Component, MemoryEstimate, estimate
from core.memory.timeline import timeline

__all__ = ["Component", "MemoryEstimate", "PastRun", "estimate", "refine", "timeline"]
