"""Stand-in for NVML, and machines that are read through it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import device
from core.device import DeviceReading, Machine

MIB = 2**20
RTX_4090: dict[str, Any] = {
    "name": "NVIDIA GeForce RTX 4090",
    "mib": 24564,
    "used_mib": 3174,
    "capability": (8, 9),
    "bus_bits": 384,
    "memory_mhz": 10501,
    "core_mhz": 2520,
    "cores": 16384,
    "processes": ((1234, "python", 2000), (77, "Xorg", 300)),
}
A100 = RTX_4090 | {"name": "NVIDIA A100-SXM4-80GB", "mib": 81920, "capability": (8, 0)}


MAX_SLICES = 7


def slice_of(name: str, mib: int, instance: int, parts: int) -> dict[str, Any]:
    """Return a slice (MIG) of a card with so many of its seven parts."""
    uuid = f"MIG-{instance}def"
    return {
        "name": name,
        "mib": mib,
        "used_mib": 0,
        "uuid": uuid,
        "instance": instance,
        "parts": parts,
    }


SLICES = (
    slice_of("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192, 1, 3),
    slice_of("NVIDIA A100-SXM4-80GB MIG 2g.20gb", 19968, 5, 2),
)
DIVIDED = A100 | {"slices": SLICES}
"""Card that is divided into two slices of different sizes."""


class NotSupported(Exception):
    """Error of the stand-in for a fact that a card does not report."""


class Nvml:
    """Stand-in for the module pynvml. A fact that a card lacks is not supported."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = "core_mhz", "memory_mhz"

    def __init__(self, *cards: dict[str, Any]):
        self.cards = cards

    def fact(self, card: dict[str, Any], name: str) -> Any:
        if name not in card:
            raise NotSupported(name)
        return card[name]

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.cards[index]

    def nvmlDeviceGetMigMode(self, card: dict[str, Any]) -> tuple[int, int]:
        return int("slices" in card), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, card: dict[str, Any]) -> int:
        return MAX_SLICES

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], place: int) -> Any:
        return card["slices"][place]  # an IndexError stands for NVMLError_NotFound

    def nvmlDeviceGetGpuInstanceId(self, part: dict[str, Any]) -> Any:
        return self.fact(part, "instance")

    def nvmlDeviceGetComputeInstanceId(self, part: dict[str, Any]) -> int:
        return 0

    def nvmlDeviceGetAttributes(self, part: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(gpuInstanceSliceCount=self.fact(part, "parts"))

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> Any:
        return self.fact(card, "name")

    def nvmlDeviceGetUUID(self, card: dict[str, Any]) -> str:
        return card.get("uuid") or f"GPU-{self.cards.index(card)}abc"

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any]) -> SimpleNamespace:
        total, used = self.fact(card, "mib") * MIB, self.fact(card, "used_mib") * MIB
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetCudaComputeCapability(self, card: dict[str, Any]) -> Any:
        return self.fact(card, "capability")

    def nvmlSystemGetDriverVersion(self) -> str:
        return "595.10"

    def nvmlDeviceGetMaxClockInfo(self, card: dict[str, Any], clock: str) -> Any:
        return self.fact(card, clock)

    def nvmlDeviceGetMemoryBusWidth(self, card: dict[str, Any]) -> Any:
        return self.fact(card, "bus_bits")

    def nvmlDeviceGetNumGpuCores(self, card: dict[str, Any]) -> Any:
        return self.fact(card, "cores")

    def nvmlDeviceGetComputeRunningProcesses(self, card: dict[str, Any]) -> Any:
        found = self.fact(card, "processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=mib and mib * MIB) for pid, _, mib in found]

    def nvmlSystemGetProcessName(self, pid: int) -> Any:
        return next(name for card in self.cards for own, name, _ in card["processes"] if own == pid)


def machine_with(*cards: dict[str, Any], visible: str | None = None) -> device.Machine:
    return device.read_machine(Path(), lambda: Nvml(*cards), visible)


def reading(index: int) -> DeviceReading:
    """Return an idle RTX 4090 at a place in nvidia-smi's list."""
    (card,) = device.cards.read_gpus(Nvml(RTX_4090))
    return replace(card, index=index)


def show_cards(monkeypatch: pytest.MonkeyPatch, *cards: DeviceReading) -> None:
    """Let this machine have these GPUs."""
    show_machine(monkeypatch, replace(device.this_machine(), gpus=cards))


def show_machine(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    """Let this machine be another one."""
    monkeypatch.setattr("core.device.machine.this_machine", lambda: machine)
