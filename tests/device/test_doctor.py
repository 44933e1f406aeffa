"""Doctor: missing parts of this machine and how to get them."""

import dataclasses

import pytest

from core.device import DeviceReading, Machine, doctor, this_machine
from core.device.compiling import Missing

OLD_CARD = DeviceReading(
    0, "Tesla P100-PCIE-16GB", "GPU-1", 2**34, 0, 2**34, (6, 0), "580", 7e11, 1.9e13, ()
)


def fixes(machine: Machine) -> dict[str, str]:
    return {finding.what: finding.fix for finding in doctor.diagnose(machine) if finding.fix}


def test_every_pinned_package_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: None)
    found = fixes(this_machine())
    assert found["trl"].startswith("pip install trl==")
    assert {"gradio", "torch", "peft", "bitsandbytes"} <= found.keys()


def test_another_version_is_reported_without_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: "0.0.1")
    found = {finding.what: finding for finding in doctor.diagnose(this_machine())}
    assert "tested with" in found["trl"].found
    assert found["trl"].fix == ""


def test_a_torch_without_cuda_beside_a_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: "2.13.0+cpu")
    assert (
        "force-reinstall torch==2.13.0"
        in fixes(dataclasses.replace(this_machine(), gpus=(OLD_CARD,)))["torch"]
    )


def test_a_card_too_old_for_the_usual_build_gets_an_older_one() -> None:
    assert "cu126" in fixes(dataclasses.replace(this_machine(), gpus=(OLD_CARD,)))["P100-PCIE-16GB"]


def test_a_full_disk_is_found() -> None:
    assert "--home" in fixes(dataclasses.replace(this_machine(), disk_free_bytes=2**30))["disk"]


def test_without_a_gpu_the_demo_is_still_practical() -> None:
    assert (
        "demo"
        in fixes(dataclasses.replace(this_machine(), gpus=(), no_gpu_reason="no driver"))["GPU"]
    )


def test_a_missing_compiler_matters_only_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = Missing("there is no C compiler", "install gcc")
    monkeypatch.setattr(doctor, "missing_for_compiling", lambda: missing)
    machine = this_machine()
    assert fixes(dataclasses.replace(machine, gpus=(OLD_CARD,)))["torch.compile"] == "install gcc"
    assert "torch.compile" not in fixes(dataclasses.replace(machine, gpus=()))
