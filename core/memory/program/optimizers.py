"""Memory of each optimizer: states per parameter, temporaries of a step. Never simulates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from core.training.contract.job import OptimizerName

BLOCK_8BIT_NUMEL = 256
"""Elements that share one scale in an 8-bit state (Optimizer2State.init_state in
bitsandbytes.optim.optimizer)."""
MIN_8BIT_NUMEL = 4096
"""Smaller tensors keep 32-bit states (min_8bit_size in bitsandbytes.optim)."""
BLOCK_4BIT_NUMEL = 128
"""Elements that share one scale in a 4-bit state (torchao/optim/adam.py)."""
CODE_BOOK_4BIT_BYTES = 16 * 4
MIN_PAGED_NUMEL = 100_000
"""Smaller tensors keep their states in ordinary device memory (get_state_buffer in
bitsandbytes.optim.optimizer)."""


@dataclass(frozen=True)
class OptimizerMemory:
    """Facts from which an optimizer's memory follows for each parameter tensor."""

    name: OptimizerName
    num_states: int
    """States per parameter, such as the two moments of Adam."""
    state_itemsize: int | None
    """Bytes per element of a state; None: as wide as the parameter."""
    is_paged: bool = False
    """True if states live in managed memory that can move to the host. PyTorch's allocator does
    not see them, but the process owns them."""
    counts_steps_on_device: bool = False
    """True if every tensor has a 4-byte step counter on the device (fused Adam)."""
    is_factored: bool = False
    """True if a matrix has one number per row and one per column, instead of a full state."""
    copies_of_all: int = 0
    """Temporaries of a step, each as large as all trained parameters (lists of foreach kernels)."""
    float_copies_of_largest: int = 0
    """Temporaries of a step, each a float32 copy of the largest tensor."""
    has_4bit_states: bool = False
    """True if large tensors keep half a byte per element and one scale per block."""
    projection_rank: int | None = None
    """Rank to which gradients of the layers' matrices are projected. A matrix keeps states of the
    projection, and the projecting matrix."""

    def state_bytes(
        self, shape: tuple[int, ...], itemsize: int, is_layer_matrix: bool = False
    ) -> Iterator[int]:
        """Yield the bytes of each tensor kept in device memory for a parameter of this itemsize."""
        numel = prod(shape)
        if self.projection_rank and is_layer_matrix:
            rank = min(self.projection_rank, *shape)
            yield rank * min(shape) * itemsize
            yield from [rank * max(shape) * itemsize] * self.num_states
            return
        if self.has_4bit_states and numel >= MIN_8BIT_NUMEL and numel % BLOCK_4BIT_NUMEL == 0:
            scales_bytes = numel // BLOCK_4BIT_NUMEL * 4
            packed_bytes = numel // 2 + scales_bytes + CODE_BOOK_4BIT_BYTES
            # at least as much as the largest tensor with wide states, so that more never costs less
            wide_bytes = itemsize * (MIN_8BIT_NUMEL - 1)
            yield from [max(packed_bytes, wide_bytes)] * self.num_states
            return
        if self.is_factored and len(shape) > 1:
            yield from (numel // size * 4 for size in shape[-2:])
        elif self.is_factored:
            yield numel * 4
        elif self.state_itemsize == 1 and numel >= MIN_8BIT_NUMEL:
            yield from [-(-numel // BLOCK_8BIT_NUMEL) * 4] * self.num_states
        if not self.pages(numel):
            yield from [self._bytes_of_one_state(numel, itemsize)] * self.num_states
        if self.counts_steps_on_device:
            yield 4

    def paged_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes kept in managed memory for a parameter."""
        numel = prod(shape)
        if self.pages(numel):
            return self.num_states * self._bytes_of_one_state(numel, 4)
        return 0

    def pages(self, numel: int) -> bool:
        """Return True if states of a tensor of this size are paged. Scales of blocks never are."""
        return self.is_paged and numel >= MIN_PAGED_NUMEL

    def _bytes_of_one_state(self, numel: int, itemsize: int) -> int:
        """Return the bytes of one state of one tensor.

        A tensor with 8-bit states counts at least as much as the largest one with 32-bit states,
        so that a larger rank never lowers an estimate. This is at most 12 KiB too much.
        """
        if self.state_itemsize != 1:
            return numel * (self.state_itemsize or itemsize)
        return max(numel, 4 * min(numel, MIN_8BIT_NUMEL - 1))


_RECORDS = (
    OptimizerMemory("adamw_torch_fused", 2, None, counts_steps_on_device=True),
    # a list of all denominators at once (_multi_tensor_adam in torch/optim/adam.py)
    OptimizerMemory("adamw_torch", 2, None, copies_of_all=1),
    OptimizerMemory("adamw_8bit", 2, 1),
    OptimizerMemory("paged_adamw_8bit", 2, 1, is_paged=True),
    OptimizerMemory("paged_adamw_32bit", 2, 4, is_paged=True),
    OptimizerMemory("lion_8bit", 1, 1),
    # gradient, parameter, their squares and the update in float32 (transformers/optimization.py)
    OptimizerMemory("adafactor", 0, 4, is_factored=True, float_copies_of_largest=4),
    OptimizerMemory("sgd", 0, None),
    # galore_torch/adamw.py and apollo_torch/apollo.py with the rank that transformers passes: a
    # gradient is decomposed in float32; an update is as large as the parameter
    OptimizerMemory("galore_adamw", 2, None, float_copies_of_largest=3, projection_rank=128),
    OptimizerMemory("apollo_adamw", 2, None, float_copies_of_largest=2, projection_rank=128),
    # z and the second moment, and a foreach list (schedulefree/adamw_schedulefree.py)
    OptimizerMemory("schedule_free_adamw", 2, None, copies_of_all=1),
    OptimizerMemory("adamw_torch_4bit", 2, None, has_4bit_states=True),
)
OPTIMIZERS: Mapping[OptimizerName, OptimizerMemory] = MappingProxyType(
    {record.name: record for record in _RECORDS}
)
