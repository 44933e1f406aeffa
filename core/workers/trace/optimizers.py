"""The optimizers of the training program as the trace steps them: the real class where one runs without data."""

from collections.abc import Sequence
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.optimization import Adafactor

STATES_IN_8_BITS = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1}
NUMBERS_PER_SCALE = 256
LEAST_8BIT_NUMBERS = 4096
LEAST_PAGED_NUMBERS = 100_000
FLOAT32_BYTES = 4


class Optimizer(Protocol):
    """What a step needs."""

    def step(self) -> Any:
        """Update every parameter."""


def optimizer_of(name: str, parameters: Sequence[Tensor], on_gpu: bool) -> Optimizer:
    """The optimizer that TrainingArguments calls by this name.

    On a GPU Adam and SGD take all parameters at once (`foreach`), which the CPU does not do by itself.
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


def paged_bytes(name: str, numbers: int) -> int:
    """Bytes of the states of a parameter of so many numbers that are not the allocator's, since they are paged."""
    if not name.startswith("paged") or numbers < LEAST_PAGED_NUMBERS:
        return 0
    return numbers * STATES_IN_8_BITS.get(name, 2 * FLOAT32_BYTES)


class BitsAndBytesStates:
    """The states of a bitsandbytes optimizer, whose own step reads data; it has no temporaries worth counting.

    In 8 bits a byte per number and a float32 per 256; below 4096 numbers 32 bits. Paged states of 100,000 numbers or
    more are not the allocator's (init_state and get_state_buffer in bitsandbytes/optim/optimizer.py).
    """

    def __init__(self, name: str, parameters: Sequence[Tensor]):
        self._name = name
        self._parameters = parameters
        self._states: list[Tensor] = []

    def step(self) -> None:
        """The first one makes the states."""
        if not self._states:
            self._states = [
                state
                for parameter in self._parameters
                for state in self._states_of(parameter.numel())
            ]

    def _states_of(self, numbers: int) -> list[Tensor]:
        count = STATES_IN_8_BITS.get(self._name)
        is_paged = paged_bytes(self._name, numbers) > 0
        if count is None or numbers < LEAST_8BIT_NUMBERS:
            return [] if is_paged else [torch.empty(numbers) for _ in range(count or 2)]
        scales = [torch.empty(ceil(numbers / NUMBERS_PER_SCALE)) for _ in range(count)]
        return (
            scales
            if is_paged
            else [*scales, *(torch.empty(numbers, dtype=torch.uint8) for _ in range(count))]
        )
