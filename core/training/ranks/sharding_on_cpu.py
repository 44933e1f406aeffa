"""Sharding over processors, where there is no GPU. Used to try and to test what GPUs do.

accelerate shards a model on accelerators only: on a CPU it would silently copy it to every rank.
"""

from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def allow_sharding_on_cpu() -> None:
    """Let accelerate treat processors that talk over gloo like GPUs. Call it before a trainer."""

    def prepare_backend(*_arguments: Any, **_settings: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend = prepare_backend
    PartialState.set_device = set_device
