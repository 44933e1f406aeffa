"""Doctor: find what is missing on this machine, and how to get it. Installs nothing."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.device.compiling import missing_for_compiling
from core.device.machine import Machine

REQUIREMENTS = Path(__file__).resolve().parent.parent.parent / "requirements.txt"
PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s#]+)", re.MULTILINE)
NEEDED_DISK_BYTES = 20 * 2**30
"""Enough for one 8B model in 16 bits and the checkpoints of its adapter."""
OLDEST_CAPABILITY = (7, 5)
"""PyTorch's CUDA 13 builds start at Turing."""
WHEELS = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Finding:
    """Result of one check of this machine."""

    what: str
    found: str
    fix: str = ""
    """What to do about it; "" if all is well."""


def diagnose(machine: Machine) -> tuple[Finding, ...]:
    """Check everything that training needs here."""
    return (*_machine_findings(machine), *_package_findings(machine), *_compiling_findings(machine))


def to_json(machine: Machine, findings: tuple[Finding, ...]) -> Mapping[str, object]:
    """Return the machine and the findings as `doctor --json` prints them."""
    return {**asdict(machine), "findings": [asdict(finding) for finding in findings]}


def _machine_findings(machine: Machine) -> list[Finding]:
    findings = []
    for what, found in machine.facts():
        fix = "without a GPU only the demo is practical" if what == "GPU" else ""
        findings.append(Finding(what, found, fix))
    for gpu in machine.gpus:
        if gpu.compute_capability < OLDEST_CAPABILITY:
            fix = f"use an older CUDA build: pip install torch==2.13.0 --index-url {WHEELS}/cu126"
            findings.append(Finding(gpu.short_name, "is too old for PyTorch's CUDA 13 builds", fix))
    if machine.disk_free_bytes < NEEDED_DISK_BYTES:
        fix = "free some space, or choose another --home"
        findings.append(Finding("disk", "is nearly full for models and checkpoints", fix))
    return findings


def _package_findings(machine: Machine) -> list[Finding]:
    findings = []
    for package, pinned in PINNED.findall(REQUIREMENTS.read_text(encoding="utf-8")):
        installed = installed_version(package)
        if installed is None:
            fix = f"pip install {package}=={pinned}"
            findings.append(Finding(package, "is not installed", fix))
        elif installed.partition("+")[0] != pinned:
            findings.append(Finding(package, f"{installed} (tested with {pinned})"))
    torch = installed_version("torch")
    if torch and torch.endswith("+cpu") and machine.gpus:
        # the most common trap: a GPU in the machine, and a PyTorch that was built without CUDA
        fix = f"pip install --force-reinstall torch=={torch.removesuffix('+cpu')}"
        fix += f"; on Windows add --index-url {WHEELS}/cu130"
        findings.append(Finding("torch", f"{torch} cannot use the GPU", fix))
    elif torch:
        findings.append(Finding("torch", torch))
    return findings


def _compiling_findings(machine: Machine) -> list[Finding]:
    """Report what torch.compile lacks. Compiled layers are faster, so profiles use them."""
    missing = missing_for_compiling()
    if not machine.gpus or missing is None:
        return []
    return [Finding("torch.compile", f"{missing.what}: layers are not compiled", missing.fix)]


def installed_version(package: str) -> str | None:
    """Return the version that is installed, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
