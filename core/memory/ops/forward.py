"""ForwardPass: the state of one forward pass that outlives its operations. Allocates nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.memory.program import Program
from core.memory.simulator import AutogradGraph, DeviceMemory, Tensor, WeightGradient

Recompute = Literal["nothing", "pointwise", "matmuls"]
"""Work that the backward pass of a compiled layer repeats: none of what it could have kept,
everything but matmuls, or some matmuls too."""


@dataclass
class ForwardPass:
    """One forward pass through a model or a part of it."""

    program: Program
    graph: AutogradGraph
    trains: bool = False
    """True while the weights that are used train."""
    recompute: Recompute = "nothing"
    cache: list[Tensor] | None = None
    """Keys and values that generation keeps; None keeps none."""
    model: str = ""
    """Prefix of parameter names that tells models apart when several train."""
    weight_casts: list[Tensor] = field(default_factory=list)
    """16-bit copies of trained float32 weights. Autocast caches them until its context ends."""
    kept_inputs: list[Tensor] | None = None
    """Inputs that 8-bit layers keep outside the graph until it is gone; None keeps none."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the micro-batch (N)."""
        return self.program.num_tokens

    @property
    def memory(self) -> DeviceMemory:
        """Memory that the operations allocate from."""
        return self.graph.memory

    def gradient_of(self, name: str, numel: int, temporary_bytes: int = 0) -> list[WeightGradient]:
        """Return the gradient of a weight as loaded, none if it does not train."""
        num_bytes = numel * self.program.weight_itemsize
        if self.trains:
            return [WeightGradient(name, num_bytes, temporary_bytes)]
        return []

    def cache_weight_casts(self, casts: Sequence[Tensor], trains: bool) -> None:
        """Keep autocast's copies of a weight that trains, release those of others (cached_cast)."""
        if trains:
            self.weight_casts += casts
        else:
            self.graph.release(*casts)

    def end_autocast(self) -> None:
        """Release the cached copies of weights, as the end of the autocast context does."""
        self.graph.release(*self.weight_casts)
        self.weight_casts = []
