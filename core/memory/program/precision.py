"""The precision of weights, adapters and math that our training program chooses. Decides; never converts."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.job import JobSpec
from core.models import Gpu

DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4})


@dataclass(frozen=True)
class Precision:
    """Bytes per number."""

    weight_bytes: int
    """Of the base as loaded; quantised layers apart."""
    adapter_bytes: int
    widens_copies: bool
    """Layers that train whole beside an adapter are as wide as it, whatever the base."""
    autocast: bool
    """Products run in 16 bits, whatever the weights are."""


def is_cpu(gpu: Gpu) -> bool:
    """True for the "card" that stands for no card at all."""
    return gpu.compute_capability == (0, 0)


def precision_of(job: JobSpec, gpu: Gpu) -> Precision:
    """What a job trains in on a card.

    On a CPU everything is float32. On a card, weights are 16 bits wide, except in full fine-tuning without bfloat16,
    where float16 weights would not train; math is autocast to 16 bits. Adapters are float32 (PEFT's default), over a
    quantised base bfloat16 where the card has it (TRL). Layers that train whole beside them are as loaded, but not in
    float16, whose gradients cannot be unscaled. `job.dtype` decides the weights if it is not auto.
    """
    on_cpu = is_cpu(gpu)
    half = "bfloat16" if gpu.supports_bf16 else "float16"
    automatic = "float32" if on_cpu or (half == "float16" and not job.trains_adapter) else half
    dtype = automatic if job.dtype == "auto" else job.dtype
    adapter_bytes = 2 if job.base_bits < 16 and gpu.supports_bf16 and not on_cpu else 4
    widens_copies = dtype == "float16" and not on_cpu
    return Precision(DTYPE_BYTES[dtype], adapter_bytes, widens_copies, autocast=not on_cpu)
