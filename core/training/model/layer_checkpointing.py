"""Activation checkpointing of every n-th layer. The trainer decides whether any layer is
checkpointed."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint


def checkpoint_every(model: Any, num_layers: int) -> None:
    """Make a model recompute one of every `num_layers` layers whenever checkpointing is switched
    on.

    Trainers switch it on when training starts; DPO and GRPO also switch it off and on in between.
    Their settings have an interval too (`every_n_layers`), but DPO passes it to PyTorch, which
    refuses it.
    """
    model._set_gradient_checkpointing = partial(
        _set_with_interval, model._set_gradient_checkpointing, num_layers
    )


def _set_with_interval(
    set_gradient_checkpointing: Callable[..., None],
    num_layers: int,
    enable: bool = True,
    gradient_checkpointing_func: Callable[..., Any] = checkpoint,
    **_: object,
) -> None:
    """Replace a model's own method, whose interval it overrides."""
    set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers=num_layers)
