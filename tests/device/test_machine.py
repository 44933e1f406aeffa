"""Read a machine through a stand-in for NVML, and this machine itself."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from core import device
from core.device import (
    DeviceReading,
    find_preset,
    local_gpu,
)
from core.device.cards import GpuProcess
from core.device.compiling import missing_for_compiling
from core.device.machine import NO_GPU_REASONS
from core.models import Gpu, gpus
from tests.builders.nvml import A100, MIB, RTX_4090, Nvml, machine_with


def raising(error: Exception) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


BANDWIDTH = pytest.approx(1008e9, rel=0.001)


def test_a_card_is_read_with_all_its_facts() -> None:
    (card,) = device.cards.read_gpus(Nvml(RTX_4090))
    assert card == DeviceReading(
        index=0,
        name="NVIDIA GeForce RTX 4090",
        uuid="GPU-0abc",
        capacity_bytes=24564 * MIB,
        used_bytes=3174 * MIB,
        free_bytes=21390 * MIB,
        compute_capability=(8, 9),
        driver="595.10",
        memory_bandwidth_bytes_per_second=BANDWIDTH,  # type: ignore[arg-type]
        flops=pytest.approx(165.2e12, rel=0.01),  # type: ignore[arg-type]
        processes=(GpuProcess(1234, "python", 2000 * MIB), GpuProcess(77, "Xorg", 300 * MIB)),
    )


def test_a_card_that_reports_little_is_still_read() -> None:
    (card,) = device.cards.read_gpus(Nvml({"mib": 8192, "used_mib": 0}))
    assert (card.name, card.compute_capability, card.processes) == ("NVIDIA GPU", (0, 0), ())
    assert card.memory_bandwidth_bytes_per_second == card.flops == 0


def test_a_process_of_unknown_size_is_listed_last() -> None:
    (card,) = device.cards.read_gpus(Nvml(RTX_4090 | {"processes": ((1, "a", None), (2, "b", 5))}))
    assert [process.used_bytes for process in card.processes] == [5 * MIB, None]


def test_a_card_that_is_lost_does_not_hide_the_others() -> None:
    (card,) = device.cards.read_gpus(Nvml({}, A100))
    assert (card.index, card.name) == (1, "NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1]),
        ("1", [1]),
        ("1, 0", [1, 0]),
        ("GPU-1", [1]),
        ("GPU-1,0", [1, 0]),
        ("0,7,1", [0]),
        ("1,1", []),
        ("", []),
        ("-1", []),
        ("GPU-", []),
        ("MIG-x", []),
    ],
)
def test_cards_are_seen_as_cuda_will_see_them(visible: str | None, indices: list[int]) -> None:
    machine = machine_with(RTX_4090, A100, visible=visible)
    assert [gpu.index for gpu in machine.gpus] == indices
    assert bool(machine.no_gpu_reason) == (not indices)


@pytest.mark.parametrize("name", NO_GPU_REASONS)
def test_every_known_failure_of_nvml_has_a_reason(name: str) -> None:
    machine = device.read_machine(Path(), raising(type(name, (Exception,), {})()), None)
    assert (machine.gpus, machine.no_gpu_reason) == ((), NO_GPU_REASONS[name])


def test_an_unknown_failure_of_nvml_is_not_an_error() -> None:
    machine = device.read_machine(Path(), raising(OSError("odd library")), None)
    assert "odd library" in machine.no_gpu_reason


def test_a_driver_without_cards_says_so() -> None:
    assert machine_with().no_gpu_reason == "the NVIDIA driver reports no GPU"


@pytest.mark.parametrize(
    ("name", "mib", "preset"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx-4060-ti"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16376, "rtx-4070-ti-super"),
        ("NVIDIA GeForce RTX 3090", 24576, "rtx-3090"),
        ("NVIDIA TITAN RTX", 24576, "titan-rtx"),
        ("Quadro RTX 6000", 24576, "quadro-rtx-6000"),
        ("NVIDIA RTX A6000", 49140, "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "rtx-pro-6000"),
        ("Tesla P100-PCIE-16GB", 16384, "p100"),
        ("Tesla V100-SXM2-32GB", 32768, "v100-32gb"),
        ("Tesla V100-PCIE-16GB", 16384, "v100-16gb"),
        ("Tesla T4", 15360, "t4"),
        ("NVIDIA A10G", 23028, "a10g"),
        ("NVIDIA A10", 23028, "a10"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H100 PCIe", 81559, "h100-pcie"),
        ("NVIDIA H100 NVL", 95830, "h100-nvl"),
        ("NVIDIA GH200 480GB", 97871, "gh200"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA B200", 183359, "b200"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, None),
        ("NVIDIA GeForce RTX 4080 Laptop GPU", 12282, None),
        ("NVIDIA GeForce RTX 4090 D", 24564, None),
        ("NVIDIA GeForce RTX 3080", 12288, None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192, None),
        ("NVIDIA GeForce GTX 1080", 8192, None),
        ("", 0, None),
    ],
)
def test_a_card_is_known_by_the_name_that_nvml_gives_it(
    name: str, mib: int, preset: str | None
) -> None:
    found = find_preset(name, mib * MIB)
    assert (found.id if found else None) == preset


@pytest.mark.parametrize("gpu", gpus().values(), ids=lambda gpu: gpu.id)
def test_every_preset_is_found_by_its_own_name_and_capacity(gpu: Gpu) -> None:
    assert find_preset(f"NVIDIA {gpu.name}".replace(" GB", "GB"), gpu.capacity_bytes) == gpu


def test_the_local_gpu_has_the_speed_and_price_of_its_preset() -> None:
    gpu, preset = local_gpu(machine_with(RTX_4090)), gpus()["rtx-4090"]
    assert (gpu.id, gpu.name, gpu.capacity_bytes) == ("local", "RTX 4090", 24564 * MIB)
    assert gpu.supports_bf16
    assert (gpu.flops, gpu.usd_per_hour, gpu.sources) == (
        preset.flops,
        preset.usd_per_hour,
        preset.sources,
    )


def test_an_unknown_card_is_described_by_its_clocks() -> None:
    gpu = local_gpu(
        machine_with(RTX_4090 | {"name": "NVIDIA GeForce RTX 4090 D", "capability": (7, 5)})
    )
    assert gpu.memory_bandwidth_bytes_per_second == BANDWIDTH
    assert not gpu.supports_bf16
    assert "rough" in " ".join(gpu.sources)
    assert gpu.usd_per_hour is None


@pytest.mark.parametrize(
    ("preset", "cores", "boost_mhz", "capability"),
    [
        ("v100-16gb", 5120, 1530, (7, 0)),
        ("rtx-2070", 2304, 1620, (7, 5)),
        ("a100-80gb", 6912, 1410, (8, 0)),
        ("rtx-3090", 10496, 1695, (8, 6)),
        ("rtx-4090", 16384, 2520, (8, 9)),
        ("h100", 16896, 1830, (9, 0)),
        ("rtx-5090", 21760, 2407, (12, 0)),
    ],
)
def test_flops_from_clocks_agree_with_the_data_sheets(
    preset: str, cores: int, boost_mhz: int, capability: tuple[int, int]
) -> None:
    (card,) = device.cards.read_gpus(
        Nvml(RTX_4090 | {"cores": cores, "core_mhz": boost_mhz, "capability": capability})
    )
    assert card.flops == pytest.approx(gpus()[preset].flops, rel=0.05)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ((), "Triton is not installed"),
        (("triton",), "there is no C compiler"),
        (("triton", "gcc"), "Python's headers are missing"),
        (("triton", "clang", "Python.h"), None),
    ],
)
def test_the_first_missing_part_for_compiling_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: tuple[str, ...], missing: str | None
) -> None:
    monkeypatch.setattr(
        "core.device.compiling.find_spec", lambda name: name if name in present else None
    )
    monkeypatch.setattr("shutil.which", lambda name: name if name in present else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    if "Python.h" in present:
        (tmp_path / "Python.h").touch()
    found = missing_for_compiling.__wrapped__()
    assert (found and found.what) == missing


def test_without_a_gpu_the_processor_is_the_device() -> None:
    machine = device.read_machine(Path(), raising(ModuleNotFoundError()), None)
    gpu = local_gpu(machine)
    assert (gpu.id, gpu.name, gpu.compute_capability, gpu.supports_bf16) == (
        "local",
        "CPU only",
        (0, 0),
        False,
    )
    assert gpu.capacity_bytes == machine.ram_bytes
    assert gpu.flops > 0
    assert "rough" in gpu.sources[-1]


def test_the_summary_names_the_gpu_and_its_use() -> None:
    assert machine_with(RTX_4090).summary() == "RTX 4090 · 3.1 / 24.0 GiB in use"


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ((RTX_4090, RTX_4090), "2 × RTX 4090 · 6.2 / 48.0 GiB in use"),
        ((RTX_4090, A100), "RTX 4090 + A100-SXM4-80GB · 6.2 / 104.0 GiB in use"),
    ],
)
def test_the_summary_counts_several_gpus(cards: tuple[dict[str, Any], ...], said: str) -> None:
    assert machine_with(*cards).summary() == said


def test_the_summary_without_a_gpu_names_the_memory() -> None:
    machine = dataclasses.replace(machine_with(), ram_bytes=23 * 2**30)
    assert machine.summary() == "CPU only · 23.0 GiB RAM"


def test_this_machine_has_a_processor_memory_and_a_disk() -> None:
    machine = device.this_machine()
    assert machine.cpu_name
    assert machine.num_cores >= 1
    assert 0 < machine.ram_available_bytes <= machine.ram_bytes <= psutil.virtual_memory().total
    assert bool(machine.gpus) != bool(machine.no_gpu_reason)
    assert dict(machine.facts())["processor"].startswith(machine.cpu_name)


def test_this_machine_is_read_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 5.9)
    first = device.this_machine()
    assert device.this_machine() is first
    monkeypatch.setattr("time.monotonic", lambda: 6.1)
    assert device.this_machine() is not first


def test_free_disk_of_a_missing_folder_is_that_of_its_parent(tmp_path: Path) -> None:
    there = device.read_machine(tmp_path, Nvml, None)
    to_come = device.read_machine(tmp_path / "not" / "yet", Nvml, None)
    assert to_come.disk_free_bytes == pytest.approx(there.disk_free_bytes, rel=0.05)
    assert to_come.disk_free_bytes > 0


def test_nothing_imports_torch() -> None:
    program = (
        "import sys, core.device as d; d.this_machine(); d.local_gpu();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
