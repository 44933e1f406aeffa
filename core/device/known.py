"""Find the preset of a GPU by its name and capacity; describe other GPUs by their readings."""

import re
from collections.abc import Sequence
from dataclasses import replace

from core.device.cards import DeviceReading
from core.device.compiling import missing_for_compiling
from core.models import Gpu, gpus

NAME_NOISE = re.compile(
    r"nvidia|geforce|tesla|gpu|generation|blackwell|workstation|server|edition"
    r"|sxm\d?|hbm\d\w*|\d+gb?",
    re.IGNORECASE,
)
"""Words of an NVML name that do not distinguish GPUs, or that the capacity distinguishes better."""
FORM_FACTORS = {"pcie", "nvl"}
"""Words that distinguish GPUs only if the presets contain them."""
CAPACITY_TOLERANCE = 0.1
"""Drivers and ECC change a capacity by up to 7 %; GPUs with one name differ by 20 % or more."""


def find_preset(name: str, capacity_bytes: int, presets: Sequence[Gpu] | None = None) -> Gpu | None:
    """Return the preset of a GPU by its NVML name and capacity, or None."""
    words = _distinguishing_words(name)
    if presets is None:
        presets = tuple(gpus().values())
    difference = {gpu.id: abs(gpu.capacity_bytes - capacity_bytes) for gpu in presets}
    close = [
        gpu for gpu in presets if difference[gpu.id] <= CAPACITY_TOLERANCE * gpu.capacity_bytes
    ]
    for wanted in (words, words - FORM_FACTORS):
        if same := [gpu for gpu in close if _distinguishing_words(gpu.id) == wanted]:
            return min(same, key=lambda gpu: difference[gpu.id])
    return None


def as_gpu(reading: DeviceReading) -> Gpu:
    """Return the facts of this machine's GPU; speed and price are those of its preset, if any."""
    missing = missing_for_compiling()
    gpu = Gpu(
        id="local",
        name=reading.short_name,
        capacity_bytes=reading.capacity_bytes,
        compute_capability=reading.compute_capability,
        supports_bf16=reading.compute_capability >= (8, 0),
        memory_bandwidth_bytes_per_second=reading.memory_bandwidth_bytes_per_second,
        flops=reading.flops,
        usd_per_hour=None,
        sources=("memory, bandwidth: NVML", "tflops: rough, cores x clock from NVML"),
        lacks_for_compiling=missing.what if missing else "",
    )
    preset = find_preset(reading.name, reading.capacity_bytes)
    if preset is None:
        return gpu
    return replace(
        gpu,
        memory_bandwidth_bytes_per_second=preset.memory_bandwidth_bytes_per_second,
        flops=preset.flops,
        usd_per_hour=preset.usd_per_hour,
        sources=preset.sources,
        link_bytes_per_second=preset.link_bytes_per_second,
    )


def _distinguishing_words(name: str) -> set[str]:
    words = re.split(r"[\s-]+", name.lower())
    return {word for word in words if word and not NAME_NOISE.fullmatch(word)}
