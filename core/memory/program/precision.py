"""Precision of weights, adapters and matmuls that the training program chooses. Never converts."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.job import JobSpec
from core.models import Gpu

ITEMSIZES: Mapping[str, int] = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4})


@dataclass(frozen=True)
class JobPrecision:
    """Bytes per element of a job's weights, and the precision of its matmuls."""

    weight_itemsize: int
    """Of the base as loaded, quantized layers excepted."""
    adapter_itemsize: int
    upcasts_modules_to_save: bool
    """True if modules that train in full beside an adapter are as wide as the adapter."""
    autocast: bool
    """True if matmuls run in 16 bits, even if the weights are wider."""


def is_cpu(gpu: Gpu) -> bool:
    """Return True for the "card" that stands for a machine without one."""
    return gpu.compute_capability == (0, 0)


def precision_of(job: JobSpec, gpu: Gpu) -> JobPrecision:
    """Return the precision that a job trains in on a card.

    `job.dtype` sets the weights unless it is auto. On a CPU everything is float32. On a card,
    weights are 16 bits wide and matmuls are autocast to 16 bits. Without bfloat16, full fine-tuning
    keeps float32 weights: float16 ones would lose small updates. Adapters are float32 (PEFT's
    default), over a quantized base bfloat16 where the card has it (TRL). Modules that train in full
    beside them are as loaded, unless that is float16, whose gradients cannot be unscaled.
    """
    on_cpu = is_cpu(gpu)
    half = "bfloat16" if gpu.supports_bf16 else "float16"
    dtype: str = job.dtype
    if dtype == "auto":
        needs_float32 = on_cpu or (half == "float16" and not job.trains_adapter)
        dtype = "float32" if needs_float32 else half
    adapter_is_bf16 = job.base_bits < 16 and gpu.supports_bf16 and not on_cpu
    return JobPrecision(
        weight_itemsize=ITEMSIZES[dtype],
        adapter_itemsize=2 if adapter_is_bf16 else 4,
        upcasts_modules_to_save=dtype == "float16" and not on_cpu,
        autocast=not on_cpu,
    )
