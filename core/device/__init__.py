"""What this machine has: GPUs, processor, memory, disk; and which processes are still the ones we started.

Asks NVML, psutil and the system; never torch, never CUDA.
"""

from core.device.cards import DeviceReading, GpuProcess, read_gpus
from core.device.compiling import Lack, lacks_for_compiling
from core.device.known import find_preset
from core.device.machine import Machine, chip, local_gpu, read_machine, this_machine
from core.device.process_id import identify, is_alive, this_boot

__all__ = [
    "DeviceReading",
    "GpuProcess",
    "Lack",
    "Machine",
    "child",
    "chip",
    "find_preset",
    "identify",
    "is_alive",
    "lacks_for_compiling",
    "local_gpu",
    "read_gpus",
    "read_machine",
    "this_boot",
    "this_machine",
]
