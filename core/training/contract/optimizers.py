"""EXTRA_OPTIMIZERS: optimizers that need a package which Tailor does not install."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ExtraOptimizer:
    """An optimizer of Transformers that needs a package which Tailor does not bring."""

    optim: str
    package: str
    """What to install."""
    module: str
    """What Python calls it."""
    is_low_rank: bool = False
    """Projects the gradients of whole matrices to a low rank: nothing for an adapter, which has a low rank itself."""


EXTRA_OPTIMIZERS: Mapping[str, ExtraOptimizer] = MappingProxyType(
    {
        extra.optim: extra
        for extra in (
            ExtraOptimizer("galore_adamw", "galore-torch", "galore_torch", is_low_rank=True),
            ExtraOptimizer("apollo_adamw", "apollo-torch", "apollo_torch", is_low_rank=True),
            ExtraOptimizer("schedule_free_adamw", "schedulefree", "schedulefree"),
            ExtraOptimizer("adamw_torch_4bit", "torchao", "torchao"),
        )
    }
)
