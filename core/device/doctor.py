"""What is missing on this machine, and how to get it. Looks at packages and drivers; installs and imports nothing."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.device import Machine, lacks_for_compiling

REQUIREMENTS = Path(__file__).resolve().parent.parent.parent / "requirements.txt"
PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s#]+)", re.MULTILINE)
NEEDED_DISK_BYTES = 20 * 2**30
"""Room for one 8B model in 16 bits and its adapter's checkpoints."""
OLDEST_CAPABILITY = (7, 5)
"""PyTorch's CUDA 13 builds start at Turing."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    fix: str = ""
    """What to do about it; empty if all is well."""

    def to_json(self) -> dict[str, str]:
        """The same as plain values."""
        return asdict(self)


def diagnose(machine: Machine) -> tuple[Finding, ...]:
    """Everything that training here needs, whether it is there, and how to get what is not."""
    return (*_machine_findings(machine), *_package_findings(machine), *_compiling_findings(machine))


def _machine_findings(machine: Machine) -> list[Finding]:
    findings = [
        Finding(
            what,
            found,
            "" if machine.gpus or what != "GPU" else "without one, only the demo is practical",
        )
        for what, found in machine.facts()
    ]
    old = [gpu for gpu in machine.gpus if gpu.compute_capability < OLDEST_CAPABILITY]
    fix = "install an older CUDA build: pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126"
    findings += [
        Finding(gpu.short_name, "is older than PyTorch's CUDA 13 builds support", fix)
        for gpu in old
    ]
    if machine.disk_free_bytes < NEEDED_DISK_BYTES:
        findings.append(
            Finding(
                "disk",
                "is nearly full for models and checkpoints",
                "free some, or name another --home",
            )
        )
    return findings


def _package_findings(machine: Machine) -> list[Finding]:
    findings = []
    for package, pinned in PINNED.findall(REQUIREMENTS.read_text(encoding="utf-8")):
        installed = installed_version(package)
        if installed is None:
            findings.append(
                Finding(package, "is not installed", f"pip install {package}=={pinned}")
            )
        elif installed.partition("+")[0] != pinned:
            findings.append(Finding(package, f"{installed} (tested with {pinned})"))
    return findings + _torch_findings(machine, installed_version("torch") or "")


def _torch_findings(machine: Machine, installed: str) -> list[Finding]:
    """The commonest trap: a GPU in the machine, and a PyTorch that was built without CUDA."""
    if machine.gpus and installed.endswith("+cpu"):
        fix = f"pip install --force-reinstall torch=={installed.partition('+')[0]}; on Windows add --index-url"
        return [
            Finding(
                "torch",
                f"{installed} cannot use the GPU",
                f"{fix} https://download.pytorch.org/whl/cu130",
            )
        ]
    return [Finding("torch", installed)] if installed else []


def _compiling_findings(machine: Machine) -> list[Finding]:
    """Compiled layers are faster; without what builds them, profiles choose others."""
    lack = lacks_for_compiling() if machine.gpus else None
    return (
        [Finding("torch.compile", f"{lack.what}: layers are not compiled", lack.fix)]
        if lack
        else []
    )


def installed_version(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def to_json(machine: Machine, findings: tuple[Finding, ...]) -> Mapping[str, object]:
    """The machine and the findings as plain values, as `doctor --json` prints them."""
    return machine.to_json() | {"findings": [finding.to_json() for finding in findings]}
