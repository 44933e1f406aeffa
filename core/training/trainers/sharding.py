"""Settings under which FSDP2 divides a model among the ranks, and how it divides a reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from trl.trainer import dpo_trainer, grpo_trainer, kto_trainer, rloo_trainer

TRAINERS_WITH_REFERENCE = (dpo_trainer, grpo_trainer, kto_trainer, rloo_trainer)


def sharding_settings(model: Any) -> dict[str, Any]:
    """Return the settings that divide weights, gradients and optimizer states among the ranks."""
    base = getattr(model, "base_model", model)
    layers = sorted(getattr(base, "_no_split_modules", None) or model._no_split_modules)
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": layers,
            "reshard_after_forward": True,
            # Each rank would else save its part in a form that nothing but FSDP can read.
            "state_dict_type": "FULL_STATE_DICT",
            "cpu_ram_efficient_loading": False,  # every rank has loaded and checked the model
        },
        # Else whole gradients stay on every rank until the last pass of a step.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


@contextmanager
def references_divided_by_layer() -> Iterator[None]:
    """Let the trainers divide a reference model layer by layer, like the model that trains.

    By themselves they make one group of it, so that each of its forward passes would gather the
    whole model on every device (prepare_fsdp in trl/models/utils.py).
    """
    name = "prepare_fsdp"
    originals = [(module, getattr(module, name)) for module in TRAINERS_WITH_REFERENCE]
    for module, _original in originals:
        setattr(module, name, divide_reference)
    try:
        yield
    finally:
        for module, original in originals:
            setattr(module, name, original)


def divide_reference(model: Any, accelerator: Any) -> Any:
    """Return a frozen model with each of its layers divided; nothing stays whole after a pass."""
    divided = fsdp2_prepare_model(accelerator, model)
    # that leaves the head whole for a backward pass, which a reference has not
    divided.set_reshard_after_forward(True)
    return divided.eval()
