"""What each optimizer keeps per parameter and needs while it steps: a table of frozen records. Never simulates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from core.job import OptimizerName

BLOCK_NUMBERS = 256
"""Numbers that share one scale in an 8-bit state (bitsandbytes.optim.optimizer.Optimizer2State.init_state)."""
LEAST_8BIT_NUMBERS = 4096
"""Smaller tensors keep 32-bit states (min_8bit_size in bitsandbytes.optim)."""
BLOCK_4BIT_NUMBERS = 128
"""Numbers that share one scale in a 4-bit state (torchao/optim/adam.py)."""
CODE_BOOK_4BIT_BYTES = 16 * 4
LEAST_PAGED_NUMBERS = 100_000
"""Smaller tensors keep their states in ordinary device memory (get_state_buffer in bitsandbytes.optim.optimizer)."""


@dataclass(frozen=True)
class Optimizer:
    """One optimizer. Its memory per parameter tensor follows from these facts."""

    name: OptimizerName
    num_states: int
    """Numbers kept for each parameter, such as the two moments of Adam."""
    state_bytes: int | None
    """Bytes of each such number; None: as wide as the parameter."""
    is_paged: bool = False
    """States live in managed memory that can move to the host: outside PyTorch's allocator, inside the process."""
    counts_steps_on_device: bool = False
    """Keeps a 4-byte step counter per tensor on the device (fused Adam)."""
    is_factored: bool = False
    """Keeps one number per row and one per column of a matrix, in place of one per parameter."""
    copies_all: int = 0
    """Temporaries as large as all trainable parameters together, while it steps (the lists of foreach kernels)."""
    float_copies_of_largest: int = 0
    """Temporaries of 4 bytes per number of one tensor, while it steps."""
    has_4bit_states: bool = False
    """Keeps half a byte per number and a scale per block, of tensors that are large enough."""
    projection_rank: int | None = None
    """Gradients of the matrices of layers are projected to this rank: states are those of the projection, besides the
    projecting matrix itself."""

    def states(
        self, shape: tuple[int, ...], parameter_bytes: int, is_matrix_of_layer: bool = False
    ) -> Iterator[int]:
        """Bytes of each tensor that it keeps in device memory for one parameter tensor."""
        numbers = prod(shape)
        if self.projection_rank and is_matrix_of_layer:
            rank = min(self.projection_rank, *shape)
            yield rank * min(shape) * parameter_bytes
            yield from [rank * max(shape) * parameter_bytes] * self.num_states
            return
        if (
            self.has_4bit_states
            and numbers >= LEAST_8BIT_NUMBERS
            and numbers % BLOCK_4BIT_NUMBERS == 0
        ):
            exception_bytes = parameter_bytes * (
                LEAST_8BIT_NUMBERS - 1
            )  # so that more numbers never cost less
            packed_bytes = numbers // 2 + numbers // BLOCK_4BIT_NUMBERS * 4 + CODE_BOOK_4BIT_BYTES
            yield from [max(packed_bytes, exception_bytes)] * self.num_states
            return
        if self.is_factored:
            yield from (
                [numbers // size * 4 for size in shape[-2:]] if len(shape) > 1 else [numbers * 4]
            )
        elif self.state_bytes == 1 and numbers >= LEAST_8BIT_NUMBERS:
            yield from [-(-numbers // BLOCK_NUMBERS) * 4] * self.num_states
        if not self.pages(numbers):
            yield from [self._state_bytes(numbers, parameter_bytes)] * self.num_states
        if self.counts_steps_on_device:
            yield 4

    def paged_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that it keeps in managed memory for one parameter tensor."""
        numbers = prod(shape)
        return self.num_states * self._state_bytes(numbers, 4) if self.pages(numbers) else 0

    def pages(self, numbers: int) -> bool:
        """True if the states of a parameter tensor of this size are paged (the scales of their blocks never are)."""
        return self.is_paged and numbers >= LEAST_PAGED_NUMBERS

    def _state_bytes(self, numbers: int, parameter_bytes: int) -> int:
        """One state of one tensor. In 8 bits a tensor costs at least what the largest exception costs in 32 bits, so
        that a larger rank never lowers an estimate; this counts at most 12 KiB too much."""
        if self.state_bytes != 1:
            return numbers * (self.state_bytes or parameter_bytes)
        return max(numbers, 4 * min(numbers, LEAST_8BIT_NUMBERS - 1))


OPTIMIZERS: Mapping[OptimizerName, Optimizer] = MappingProxyType(
    {
        optimizer.name: optimizer
        for optimizer in (
            Optimizer(
                "adamw_torch_fused", num_states=2, state_bytes=None, counts_steps_on_device=True
            ),
            # foreach Adam builds the list of all denominators at once (torch/optim/adam.py: _multi_tensor_adam).
            Optimizer("adamw_torch", num_states=2, state_bytes=None, copies_all=1),
            Optimizer("adamw_8bit", num_states=2, state_bytes=1),
            Optimizer("paged_adamw_8bit", num_states=2, state_bytes=1, is_paged=True),
            Optimizer("paged_adamw_32bit", num_states=2, state_bytes=4, is_paged=True),
            Optimizer("lion_8bit", num_states=1, state_bytes=1),
            # transformers/optimization.py: the gradient, the parameter, their squares and the update, all in float32.
            Optimizer(
                "adafactor",
                num_states=0,
                state_bytes=4,
                is_factored=True,
                float_copies_of_largest=4,
            ),
            Optimizer("sgd", num_states=0, state_bytes=None),
            # galore_torch/adamw.py and apollo_torch/apollo.py, with the rank that transformers passes on: a projection
            # is found by decomposing the gradient in float32; an update is as large as the parameter.
            Optimizer("galore_adamw", 2, None, float_copies_of_largest=3, projection_rank=128),
            Optimizer("apollo_adamw", 2, None, float_copies_of_largest=2, projection_rank=128),
            # schedulefree/adamw_schedulefree.py: z and the second moment; the list of all denominators (foreach).
            Optimizer("schedule_free_adamw", num_states=2, state_bytes=None, copies_all=1),
            Optimizer("adamw_torch_4bit", num_states=2, state_bytes=None, has_4bit_states=True),
        )
    }
)
