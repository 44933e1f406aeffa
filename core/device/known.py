"""The card of this machine as a preset: told from its namesakes by name and capacity, or described by what it says."""

import re
from collections.abc import Sequence

from core.device.cards import DeviceReading
from core.device.compiling import lacks_for_compiling
from core.models import Gpu, gpus

NAME_NOISE = re.compile(
    r"nvidia|geforce|tesla|gpu|generation|blackwell|workstation|server|edition|sxm\d?|hbm\d\w*|\d+gb?",
    re.IGNORECASE,
)
"""Words of an NVML name that do not tell cards apart, or that the capacity tells better."""
FORM_FACTORS = {"pcie", "nvl"}
"""Words that tell cards apart only where the presets do."""
CAPACITY_TOLERANCE = 0.1
"""Drivers and ECC move a card's capacity by up to 7 %; cards of one name differ by 20 % and more."""


def find_preset(name: str, capacity_bytes: int, presets: Sequence[Gpu] | None = None) -> Gpu | None:
    """The preset of the card that NVML calls `name`, told from its namesakes by its capacity; None if there is none."""
    words = _telling_words(name)
    close = [
        gpu
        for gpu in (gpus().values() if presets is None else presets)
        if abs(gpu.capacity_bytes - capacity_bytes) <= CAPACITY_TOLERANCE * gpu.capacity_bytes
    ]
    for wanted in (words, words - FORM_FACTORS):
        if same := [gpu for gpu in close if _telling_words(gpu.id) == wanted]:
            return min(same, key=lambda gpu: abs(gpu.capacity_bytes - capacity_bytes))
    return None


def as_gpu(reading: DeviceReading) -> Gpu:
    """The card as the estimate wants it: speed and price of its preset, if it has one."""
    preset, lack = find_preset(reading.name, reading.capacity_bytes), lacks_for_compiling()
    return Gpu(
        id="local",
        name=reading.short_name,
        capacity_bytes=reading.capacity_bytes,
        compute_capability=reading.compute_capability,
        supports_bf16=reading.compute_capability >= (8, 0),
        memory_bandwidth_bytes_per_second=(preset or reading).memory_bandwidth_bytes_per_second,
        flops=(preset or reading).flops,
        usd_per_hour=preset.usd_per_hour if preset else None,
        sources=preset.sources
        if preset
        else ("memory, bandwidth: NVML", "tflops: rough, cores x clock from NVML"),
        lacks_for_compiling=lack.what if lack else "",
    )


def _telling_words(name: str) -> set[str]:
    words = re.split(r"[\s-]+", name.lower())
    return {word for word in words if word and not NAME_NOISE.fullmatch(word)}
