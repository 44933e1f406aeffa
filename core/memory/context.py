"""CUDA context: the memory that the driver takes for itself in every process. Knows no job."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.memory.program import is_cpu
from core.models import Gpu

MIB = 2**20


@dataclass(frozen=True)
class Context:
    """Expected size of the CUDA context of a process, and its bounds, in bytes."""

    expected_bytes: int
    low_bytes: int
    high_bytes: int

    @property
    def is_known(self) -> bool:
        """True if the bounds are close, because the context was measured."""
        return self.high_bytes - self.low_bytes < self.expected_bytes


NO_CONTEXT = Context(0, 0, 0)
MEASURED_CONTEXTS: Mapping[tuple[int, int], Context] = MappingProxyType(
    {
        # 140.9 MiB in 69 of 79 processes on a T4, torch 2.10 to 2.14 (measured_peaks.jsonl)
        (7, 5): Context(141 * MIB, 140 * MIB, 145 * MIB),
    }
)
"""Compute capability -> context."""
UNMEASURED_CONTEXT = Context(450 * MIB, 141 * MIB, 723 * MIB)
"""Other cards: from that of a T4 to the largest one reported (a PyTorch forum thread of 2020)."""


def context_of(gpu: Gpu) -> Context:
    """Return the CUDA context of a process on this card."""
    if is_cpu(gpu):
        return NO_CONTEXT
    return MEASURED_CONTEXTS.get(gpu.compute_capability, UNMEASURED_CONTEXT)
