"""Parameter: name, size and role of one tensor of a model."""

from dataclasses import dataclass
from math import prod
from typing import Literal

TensorRole = Literal["embedding", "linear", "norm", "bias", "expert", "router", "head", "other"]


@dataclass(frozen=True)
class Parameter:
    """Name, size and role of one parameter tensor."""

    name: str
    """Path in the model (`lm_head.weight`), or within its layer (`self_attn.q_proj.weight`)."""
    shape: tuple[int, ...]
    role: TensorRole

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """True for weights of linear layers: LoRA can target and bitsandbytes can quantize them."""
        return self.role == "linear"

    @property
    def module(self) -> str:
        """Name of its module, as in PEFT's target_modules: `q_proj`."""
        return self.name.split(".")[-2]
