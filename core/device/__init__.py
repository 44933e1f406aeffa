"""This machine: GPUs, processor, memory, disk, and whether a process still runs.

Asks NVML, psutil and the system; never torch, never CUDA.
"""

from core.device.cards import DeviceReading
from core.device.known import find_preset
from core.device.machine import (
    Machine,
    card_of,
    cards_together,
    local_gpu,
    read_machine,
    this_machine,
)
from core.device.process_id import identify, is_alive, this_boot

__all__ = [
    "DeviceReading",
    "Machine",
    "card_of",
    "cards",
    "cards_together",
    "child",
    "doctor",
    "find_preset",
    "identify",
    "is_alive",
    "local_gpu",
    "machine",
    "read_machine",
    "this_boot",
    "this_machine",
]
