"""Activation checkpointing of every n-th layer. Owns which layers are recomputed; whether any are is the trainer's."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint


def checkpoint_every(model: Any, num_layers: int) -> None:
    """Whenever checkpointing is switched on for a model, lets one of every `num_layers` of its layers be recomputed.

    Trainers switch it on when training starts, and DPO and GRPO off and on in between. Their settings can name the
    interval too, as `every_n_layers`, but DPO hands those on to PyTorch, which refuses it.
    """
    model._set_gradient_checkpointing = partial(
        _switch, model._set_gradient_checkpointing, num_layers
    )


def _switch(
    switch: Callable[..., None],
    num_layers: int,
    enable: bool = True,
    gradient_checkpointing_func: Callable[..., Any] = checkpoint,
    **_: object,
) -> None:
    """Stands in for a model's own, whose interval it overrides."""
    switch(enable, gradient_checkpointing_func, every_n_layers=num_layers)
