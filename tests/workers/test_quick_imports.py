"""Imports of the libraries of a model, without the compiler that they do not need."""

import subprocess
import sys

import pytest

from core.device.child import ROOT

PROGRAM = """
import gc
import sys

from core.workers.quick_imports import quick_imports

with quick_imports():
    import core.workers.trained_model
import torch

print("bitsandbytes" in sys.modules)
print("torch._inductor.compile_fx" in sys.modules)
print(gc.isenabled())
print(torch.compiler.get_default_backend())
"""


@pytest.mark.slow
def test_a_model_is_loaded_without_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "True", "inductor"]
