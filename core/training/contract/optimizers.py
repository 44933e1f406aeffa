"""EXTRA_OPTIMIZERS: optimizers that need a package which Tailor does not install."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ExtraOptimizer:
    """Optimizer of Transformers that needs a further package."""

    optim: str
    package: str
    """Name for pip install."""
    module: str
    """Name for import."""
    is_low_rank: bool = False
    """Projects gradients of whole matrices to a low rank. An adapter's have a low rank already."""


_EXTRA_OPTIMIZERS = (
    ExtraOptimizer("galore_adamw", "galore-torch", "galore_torch", is_low_rank=True),
    ExtraOptimizer("apollo_adamw", "apollo-torch", "apollo_torch", is_low_rank=True),
    ExtraOptimizer("schedule_free_adamw", "schedulefree", "schedulefree"),
    ExtraOptimizer("adamw_torch_4bit", "torchao", "torchao"),
)
EXTRA_OPTIMIZERS: Mapping[str, ExtraOptimizer] = MappingProxyType(
    {extra.optim: extra for extra in _EXTRA_OPTIMIZERS}
)
