"""What this machine lacks to build the kernels that torch.compile writes. Looks for it; imports and runs nothing."""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

COMPILERS = ("gcc", "clang", "cc")
"""What Triton looks for unless CC names another (triton/runtime/build.py); on Windows it brings one."""


@dataclass(frozen=True)
class Lack:
    """One thing that is missing."""

    what: str
    fix: str


@cache
def lacks_for_compiling() -> Lack | None:
    """What is missing first, of Triton, a C compiler and Python's headers; None if nothing is."""
    if find_spec("triton") is None:
        return Lack(
            "Triton is not installed",
            f"pip install {'triton-windows' if os.name == 'nt' else 'triton'}",
        )
    if os.name == "nt":
        return None
    if not any(map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))):
        return Lack("there is no C compiler", "install one, such as gcc: sudo apt install gcc")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return Lack("Python's headers are missing", "sudo apt install python3-dev")
    return None
