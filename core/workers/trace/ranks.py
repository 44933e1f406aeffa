"""Trace one rank of several: the real FSDP2 and DDP wrap the model, in a group without others.

The group is torch's own for tests: its other ranks do not exist, and no data is sent.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import bitsandbytes.nn.modules as bnb_modules
import torch
import torch.distributed as dist
from accelerate.utils.fsdp_utils import _find_final_norm
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._fully_shard import _fsdp_init, _fsdp_param
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.nn.parallel import DistributedDataParallel, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from .allocation_log import AllocationLog, TemporaryBytes
from .kernels import TEMPORARY_BYTES
from .model import frozen_copy, materialize
from .step import TracedTraining


@contextmanager
def group_of(num_ranks: int) -> Iterator[None]:
    """Be rank 0 of a group whose other ranks do not exist."""
    if num_ranks == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


class RankLog(AllocationLog):
    """Log of what one rank allocates: a distributed tensor counts as the part that it holds.

    FSDP empties and fills the storages of gathered tensors; that is counted, too.
    """

    def __init__(self, temporary_bytes: Mapping[str, TemporaryBytes]) -> None:
        super().__init__(temporary_bytes)
        self.is_counting = True
        """False while the model is in main memory."""
        self._numbers: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let a distributed tensor run its operation on its part, which comes here again."""
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]  # which without data would be another tensor
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _log_storage(self, tensor: torch.Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known_storages or storage.nbytes() == 0:
            return
        self._known_storages.add(key)
        if self.is_counting:
            self._numbers[key] = self.allocate(storage.nbytes(), operation)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._known_storages.discard(key)
        if key in self._numbers:
            self.free(self._numbers.pop(key))

    def resize(self, tensor: torch.Tensor, num_bytes: int) -> None:
        """Give the storage of a tensor this size."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == num_bytes:
            return
        storage.resize_(num_bytes)
        key = storage._cdata
        if key in self._numbers:
            self.free(self._numbers.pop(key))
        if num_bytes:
            self._known_storages.add(key)
            self._numbers[key] = self.allocate(num_bytes, "gather")


class RankTraining(TracedTraining):
    """Training in miniature by rank 0 of several."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mesh = init_device_mesh("cpu", (self.job.num_devices,))
        self.ranked_log = RankLog(TEMPORARY_BYTES)
        self.log = self.ranked_log
        self._copies: DistributedDataParallel | None = None
        """Kept for its buckets. Its own forward pass reads data, so the model is called alone."""

    def run(self, layers: Mapping[int, nn.Module]) -> AllocationLog:
        """Trace rank 0 from loading to an evaluation; return the log."""
        with counted_gathers(self.ranked_log):
            return super().run(layers)

    def _load(self) -> None:
        if not self.job.is_sharded:
            super()._load()
            with (  # which read the data of tensors, and leave nothing behind
                patch.object(distributed, "_verify_param_shape_across_processes"),
                patch.object(distributed, "_sync_module_states"),
            ):
                self._copies = DistributedDataParallel(self.model)
            return
        self.ranked_log.is_counting = False
        materialize(self.model, self.precision)
        if self.needs_copy:
            self._reference = frozen_copy(self.model)
        has_4bit = any(isinstance(module, Linear4bit) for module in self.model.modules())
        for module in self.model.modules():
            if isinstance(module, Linear4bit):
                store_as(module, self.precision.weights)
        if self.precision.autocast and not has_4bit:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        self.ranked_log.is_counting = True
        for model in filter(None, (self.model, self._reference)):
            for num_bytes in undivided(model):
                self.log.allocate(num_bytes, "load")
            shard(model, self.precision.autocast, self.mesh, self.log)
        if self.stage.generates:
            register_fsdp_forward_method(self.model, "generate")  # as Trainer of transformers
        if self._reference is not None:  # as divide_reference in the training program
            self._reference.set_reshard_after_forward(True)


@contextmanager
def counted_gathers(log: RankLog) -> Iterator[None]:
    """Count what FSDP does to the storages of gathered tensors."""

    def allocate(tensor: torch.Tensor) -> None:
        log.resize(tensor, tensor.numel() * tensor.itemsize)

    def free(tensor: torch.Tensor) -> None:
        log.resize(tensor, 0)

    def remember_scales(layer: Any) -> None:
        if layer.quant_state is not None:
            layer.weight.quant_state = layer.quant_state

    propagate = ShardingPropagator._propagate_tensor_meta_non_cached

    def propagate_uncounted(*arguments: Any) -> Any:
        # works out the shape of a result with tensors as large as all parts together
        log.is_counting = False
        try:
            return propagate(*arguments)
        finally:
            log.is_counting = True

    with (
        patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", propagate_uncounted),
        patch.object(bnb_modules, "fix_4bit_weight_quant_state_from_module", remember_scales),
        patch.object(_fsdp_param, "alloc_storage", allocate),
        patch.object(_fsdp_param, "free_storage", free),
    ):
        yield


def store_as(layer: Any, dtype: torch.dtype) -> None:
    """Let the packed weight of a 4-bit layer look like the others, so that it can be divided."""
    packed = layer.weight
    num_elements = packed.numel() // dtype.itemsize
    state = packed.quant_state
    data = torch.empty(num_elements, 1, dtype=dtype)
    layer.weight = nn.Parameter(data, requires_grad=False)
    layer.weight.quant_state = state
    layer.quant_state = state


def undivided(model: nn.Module) -> Iterator[int]:
    """Yield the bytes of what each rank holds whole: buffers, and the scales of 4-bit weights."""
    for buffer in model.buffers():
        yield buffer.untyped_storage().nbytes()
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        while state is not None:
            for tensor in (state.absmax, state.code):
                yield tensor.untyped_storage().nbytes()
            state = state.state2


@contextmanager
def moved_group(log: AllocationLog) -> Iterator[None]:
    """Count the parameters that FSDP2 moves from main memory before it divides them: they are
    whole on the device in this block."""
    numbers: list[int] = []

    def move(parameters: list[nn.Parameter], _buffers: Any, _device: Any) -> None:
        sizes = [each.untyped_storage().nbytes() for each in parameters]
        numbers.extend(log.allocate(num_bytes, "move") for num_bytes in sizes)

    with patch.object(_fsdp_init, "_move_states_to_device", move):
        yield
    for number in numbers:
        log.free(number)


def shard(model: Any, dtype: torch.dtype | None, mesh: DeviceMesh, log: AllocationLog) -> None:
    """Divide a model as fsdp2_prepare_model in accelerate does."""

    def divide(module: Any, **more: Any) -> None:
        with moved_group(log):
            fully_shard(module, **{**settings, **more})

    policy = MixedPrecisionPolicy()
    if dtype is not None:
        policy = MixedPrecisionPolicy(dtype, dtype, output_dtype=dtype)
    settings: dict[str, Any] = {"mp_policy": policy, "mesh": mesh}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(base._no_split_modules)
    for module in list(model.modules())[::-1]:
        if type(module).__name__ in names:
            divide(module, reshard_after_forward=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is not None and embedding.weight is head.weight
    if not is_tied:
        divide(embedding, reshard_after_forward=True)
    tail = [_find_final_norm(model), embedding if is_tied else None, head]
    found = [module for module in tail if module is not None]  # a model that scores has no head
    if found:
        divide(found, reshard_after_forward=False)
    divide(model)
