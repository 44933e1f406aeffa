"""Optimizers of a training: the real class where it runs without data, else its states."""

from collections.abc import Sequence
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.optimization import Adafactor

NUM_8BIT_STATES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1}
ELEMENTS_PER_SCALE = 256
MIN_8BIT_ELEMENTS = 4096
MIN_PAGED_ELEMENTS = 100_000
FLOAT32_BYTES = 4


class Steppable(Protocol):
    """Optimizer, as far as a trace needs it."""

    def step(self) -> Any:
        """Update every parameter."""


def build_optimizer(name: str, parameters: Sequence[Tensor], on_gpu: bool) -> Steppable:
    """Return the optimizer that TrainingArguments calls `name`.

    On a GPU Adam and SGD update all parameters at once (`foreach`); on a CPU that is not the
    default.
    """
    match name:
        case "adamw_torch_fused":
            return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        case "adamw_torch":
            return torch.optim.AdamW(parameters, lr=1e-4, foreach=on_gpu)
        case "sgd":
            return torch.optim.SGD(parameters, lr=1e-4, foreach=on_gpu)
        case "adafactor":
            return Adafactor(parameters, lr=1e-4, scale_parameter=False, relative_step=False)
        case _:
            return BitsAndBytesStates(name if on_gpu else name.removeprefix("paged_"), parameters)


def paged_bytes(name: str, numel: int) -> int:
    """Return the bytes of a parameter's states that are paged, so not in the allocator's memory."""
    if not name.startswith("paged") or numel < MIN_PAGED_ELEMENTS:
        return 0
    return numel * NUM_8BIT_STATES.get(name, 2 * FLOAT32_BYTES)


class BitsAndBytesStates:
    """States of a bitsandbytes optimizer, whose own step reads data. Its temporaries are
    negligible.

    8-bit states take a byte per element and a float32 per 256; below 4096 elements they have 32
    bits. Paged states of 100,000 elements or more are not the allocator's (init_state and
    get_state_buffer in bitsandbytes/optim/optimizer.py).
    """

    def __init__(self, name: str, parameters: Sequence[Tensor]):
        self._name = name
        self._parameters = parameters
        self._states: list[Tensor] = []

    def step(self) -> None:
        """Allocate the states at the first step."""
        if not self._states:
            for parameter in self._parameters:
                self._states += self._states_of(parameter.numel())

    def _states_of(self, numel: int) -> list[Tensor]:
        num_8bit = NUM_8BIT_STATES.get(self._name)
        is_paged = paged_bytes(self._name, numel) > 0
        if num_8bit is None or numel < MIN_8BIT_ELEMENTS:
            if is_paged:
                return []
            return [torch.empty(numel) for _ in range(num_8bit or 2)]
        num_scales = ceil(numel / ELEMENTS_PER_SCALE)
        states = [torch.empty(num_scales) for _ in range(num_8bit)]
        if not is_paged:
            states += [torch.empty(numel, dtype=torch.uint8) for _ in range(num_8bit)]
        return states
