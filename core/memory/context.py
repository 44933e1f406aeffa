"""Memory of a process beside its tensors: the CUDA context, or the libraries on a processor.

Knows no job.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.memory.program import is_cpu
from core.models import Gpu

MIB = 2**20


@dataclass(frozen=True)
class Context:
    """Expected size of what a process takes beside its tensors, and its bounds, in bytes."""

    expected_bytes: int
    low_bytes: int
    high_bytes: int
    title: str = "CUDA context"
    note: str = "Memory that the CUDA driver takes for itself in every process."
    """One sentence about it."""

    @property
    def is_known(self) -> bool:
        """True if the bounds are close, because the context was measured."""
        return self.high_bytes - self.low_bytes < self.expected_bytes


LIBRARIES_ON_CPU = Context(
    550 * MIB,
    450 * MIB,
    900 * MIB,
    "Python and libraries",
    "The process before it loads a model: without a GPU it counts, as everything that it takes.",
)
"""Most that a process took beyond the tensors of the demo, on Linux with PyTorch for processors:
545 to 560 MiB under full, lora and qlora. A PyTorch with CUDA loads more."""
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
    """Return what a process takes on this card, or on a processor, beside its tensors."""
    if is_cpu(gpu):
        return LIBRARIES_ON_CPU
    return MEASURED_CONTEXTS.get(gpu.compute_capability, UNMEASURED_CONTEXT)
