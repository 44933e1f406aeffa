"""Memory estimate: simulates every tensor of a training step, and PyTorch's allocator under it.

`estimate` is the way in. Pure Python: imports no torch and reads no disk, but for trace_check.

    simulator/   device memory, autograd and the caching allocator; knows no model
    ops/         one decoder, op by op: what each operation allocates, saves and releases
    program/     what a job makes the device do
    answering    memory of a program that answers with a model
    step         simulates one training step, layer by layer
    trace_check  traces the real training program in a child process, to check an estimate
"""

from core.memory.calibration import PastRun, refine
from core.memory.components import COMPONENTS, Component
from core.memory.estimate import TIGHT_SHARE, MemoryEstimate, estimate
from core.memory.timeline import TimelinePoint, timeline

__all__ = [
    "COMPONENTS",
    "TIGHT_SHARE",
    "Component",
    "MemoryEstimate",
    "PastRun",
    "TimelinePoint",
    "answering",
    "estimate",
    "extrapolate",
    "program",
    "refine",
    "simulator",
    "step",
    "timeline",
    "trace_check",
]
