"""Find what this machine lacks to build the kernels of torch.compile. Runs nothing."""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

COMPILERS = ("gcc", "clang", "cc")
"""Triton looks for these, or what CC names (triton/runtime/build.py); on Windows it has one."""


@dataclass(frozen=True)
class Missing:
    """One thing that is not installed, and how to install it."""

    what: str
    fix: str


@cache
def missing_for_compiling() -> Missing | None:
    """Return the first that is missing of Triton, a C compiler and Python's headers, or None."""
    is_windows = os.name == "nt"
    if find_spec("triton") is None:
        package = "triton-windows" if is_windows else "triton"
        return Missing("Triton is not installed", f"pip install {package}")
    if is_windows:
        return None
    if not any(map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))):
        return Missing("there is no C compiler", "install one, such as gcc: sudo apt install gcc")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return Missing("Python's headers are missing", "sudo apt install python3-dev")
    return None
