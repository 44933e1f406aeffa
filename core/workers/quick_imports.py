"""Import the libraries of a model sooner. For children that compile nothing."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Leave out what imports do for others: it takes a third of their time.

    bitsandbytes compiles a few of its functions, which imports the compiler inductor. The default
    backend "eager" keeps them as they are written. No garbage is collected, because modules stay.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        import torch

        torch.compiler.set_default_backend("eager")
        yield
        torch.compiler.set_default_backend(None)
        gc.freeze()  # later collections need not look through modules
    finally:
        gc.enable()
