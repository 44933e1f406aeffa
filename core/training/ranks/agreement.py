"""Agreement of the ranks: what one of them decides, all must do at the same step.

Each function is called by every rank. With one rank they return what they are given.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .rank import Rank
from .sharding_on_cpu import allow_sharding_on_cpu

MINUTES_TO_WAIT = 60
"""Longest work of one rank that the others wait for, such as the sample answers or a slow disk."""


def connect(rank: Rank, *, is_sharded: bool = False) -> None:
    """Join the other ranks, and take the device of this one. Does nothing for one rank."""
    if rank.is_alone:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local_index)
        backend = "nccl"
    elif is_sharded:
        allow_sharding_on_cpu()
    dist.init_process_group(backend, timeout=timedelta(minutes=MINUTES_TO_WAIT))


def disconnect() -> None:
    """Leave the other ranks, at the end of a training."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _are_several() else 1


def any_rank(is_true: bool) -> bool:
    """Return True on every rank if it is true on one."""
    if not _are_several():
        return is_true
    flag = torch.tensor(int(is_true), device=_device())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def total(numbers: Sequence[float]) -> list[float]:
    """Return the sum over all ranks of each number."""
    if not _are_several():
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return [float(each) for each in sums.tolist()]


def extremes(numbers: Sequence[float]) -> list[tuple[float, float]]:
    """Return the least and the most over all ranks of each number."""
    if not _are_several():
        return [(each, each) for each in numbers]
    pairs = [[-each, each] for each in numbers]
    most = torch.tensor(pairs, dtype=torch.float64, device=_device())
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [(-float(least), float(greatest)) for least, greatest in most.tolist()]


def from_first(value: Any) -> Any:
    """Return the value of rank 0 on every rank."""
    if not _are_several():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def wait_for_all() -> None:
    """Return once every rank has come here."""
    if _are_several():
        dist.barrier()


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
